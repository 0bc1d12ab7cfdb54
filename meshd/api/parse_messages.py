"""Chat messages, those of tools included. Pure; every function raises only BadInput."""

from __future__ import annotations

from meshd.api.fields import Fields, check_text
from meshd.api.parse_options import refuse_meaningful
from meshd.core import limits
from meshd.core.chat import Message, ToolCall
from meshd.core.errors import BadInput

_NEUTRAL: dict[str, tuple[object, ...]] = {"audio": (), "refusal": (), "function_call": ()}
_ROLES = ("system", "developer", "user", "assistant", "tool")
_ID_CHARS = 200


def messages_of(value: object) -> tuple[Message, ...]:
    """The messages of a chat; a tool's message must answer a call that came before it."""
    if not isinstance(value, list) or not value:
        raise BadInput("messages must be a list of at least one message", param="messages")
    if len(value) > limits.MAX_MESSAGES:
        raise BadInput(f"more than {limits.MAX_MESSAGES} messages", param="messages")
    called: dict[str, str] = {}
    return tuple(_message(Fields(item, prefix=f"messages[{i}]."), called) for i, item in enumerate(value))


def _message(fields: Fields, called: dict[str, str]) -> Message:
    refuse_meaningful(fields, _NEUTRAL)
    fields.ignore("annotations")
    role = fields.required_text("role", max_chars=20)
    if role not in _ROLES:
        raise BadInput("unknown role", param=fields.param("role"), hint=f"one of: {', '.join(_ROLES)}")
    name = fields.text("name", max_chars=_ID_CHARS) or ""
    calls = _calls(fields, called) if role == "assistant" else _no_calls(fields)
    call_id = ""
    if role == "tool":
        call_id = fields.required_text("tool_call_id", max_chars=_ID_CHARS)
        if call_id not in called:
            raise BadInput(
                f"{fields.param('tool_call_id')} answers no call of an earlier message",
                param=fields.param("tool_call_id"),
                hint="put the assistant's message with its tool_calls before it",
            )
        name = name or called[call_id]
    content = _content(fields, optional=bool(calls))
    fields.finish()
    return Message(role, content, calls, call_id, name if role == "tool" else "")


def _no_calls(fields: Fields) -> tuple[ToolCall, ...]:
    if fields.raw("tool_calls") not in (None, []):
        raise BadInput("only an assistant's message holds tool calls", param=fields.param("tool_calls"))
    return ()


def _calls(fields: Fields, called: dict[str, str]) -> tuple[ToolCall, ...]:
    value = fields.raw("tool_calls")
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > limits.MAX_TOOLS:
        raise BadInput(
            f"{fields.param('tool_calls')} must be a list of at most {limits.MAX_TOOLS} calls",
            param=fields.param("tool_calls"),
        )
    calls = tuple(_call(Fields(c, prefix=f"{fields.param('tool_calls')}[{i}].")) for i, c in enumerate(value))
    called.update((call.id, call.name) for call in calls)
    return calls


def _call(fields: Fields) -> ToolCall:
    if fields.raw("type") not in (None, "function"):
        raise BadInput(f"{fields.param('type')}: only functions can be called", param=fields.param("type"))
    fields.ignore("index")
    id = fields.required_text("id", max_chars=_ID_CHARS)
    function = Fields(fields.raw("function"), prefix=fields.param("function."))
    fields.finish()
    name = function.required_text("name", max_chars=64)
    arguments = function.text("arguments", max_chars=limits.MAX_PROMPT_BYTES) or ""
    function.finish()
    try:
        return ToolCall(id, name, arguments)
    except BadInput as error:
        raise BadInput(error.message, param=function.param("name")) from None


def _content(fields: Fields, *, optional: bool) -> str:
    value, param = fields.raw("content"), fields.param("content")
    if value is None and optional:
        return ""
    if isinstance(value, str):
        return check_text(value, param)
    return text_parts(value, param, ("text",))


def text_parts(value: object, param: str, kinds: tuple[str, ...]) -> str:
    """The text of a list of parts, each of one of ``kinds``."""
    if not isinstance(value, list):
        raise BadInput(f"{param} must be a string or a list of text parts", param=param)
    if len(value) > limits.MAX_MESSAGES:
        raise BadInput(f"{param} has more than {limits.MAX_MESSAGES} parts", param=param)
    return "".join(_text_part(Fields(part, prefix=f"{param}[{i}]."), kinds) for i, part in enumerate(value))


def _text_part(fields: Fields, kinds: tuple[str, ...]) -> str:
    if fields.raw("type") not in kinds:
        raise BadInput(f"{fields.param('type')}: only text parts are supported yet", param=fields.param("type"))
    fields.ignore("annotations", "logprobs")
    text = fields.text("text", max_chars=limits.MAX_PROMPT_BYTES)
    fields.finish()
    if text is None:
        raise BadInput(f"{fields.param('text')} is required", param=fields.param("text"))
    return text
