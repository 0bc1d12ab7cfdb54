"""The body of /v1/responses to a request of ours. Pure: no clock, no randomness.

What this node does of that API is one answer in text: no state between requests, no tools run on anybody's behalf.
"""

from __future__ import annotations

from meshd.api import parse_options as options
from meshd.api.asked import TextRequest
from meshd.api.fields import Fields, check_text
from meshd.api.parse_messages import text_parts
from meshd.core import limits
from meshd.core.chat import Message
from meshd.core.errors import BadInput
from meshd.core.generation import Format, FormatKind, Generation, Prompt

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "moderation": (),
    "multi_agent": (),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({}, {"effort": None}, {"effort": "none"}),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
_IGNORED = tuple(name for name in options.IGNORED if name != "metadata")
_ROLES = ("user", "assistant", "system", "developer")
_PARTS = ("input_text", "output_text", "text")


def parse_responses(body: object) -> TextRequest:
    """The request in a decoded JSON ``body``. Raises only BadInput, the sender's fault."""
    fields = Fields(body)
    fields.ignore(*_IGNORED, "parallel_tool_calls", "prompt_cache_options")
    options.refuse_meaningful(fields, _NEUTRAL, hint="leave it out; /v1/chat/completions knows tools and logprobs")
    model = fields.required_text("model", max_chars=200)
    instructions = fields.text("instructions", max_chars=limits.MAX_PROMPT_BYTES)
    prompt = _prompt((*_instructions(instructions), *_input(fields.raw("input"))))
    constraints, exact = options.mesh_of(fields)
    sampling, seed = options.sampling_of(fields)
    max_tokens = fields.integer("max_output_tokens", 1, limits.MAX_OUTPUT_TOKENS)
    form = _format(fields.raw("text"))
    metadata = _metadata(fields.raw("metadata"))
    stream, _ = options.stream_of(fields)
    told: dict[str, object] = {
        "instructions": instructions,
        "max_output_tokens": max_tokens,
        "metadata": metadata,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "text": {"format": _format_told(fields.raw("text"))},
        "user": fields.text("user", max_chars=1000),
    }
    fields.finish(options.HINT)
    generation = Generation(prompt, sampling, max_tokens, (), exact, None, form)
    return TextRequest(model, (generation,), seed, constraints, stream, told=told)


def _prompt(messages: tuple[Message, ...]) -> Prompt:
    try:
        return Prompt(messages=messages)
    except BadInput as error:
        raise BadInput(error.message, param="input") from None


def _instructions(text: str | None) -> tuple[Message, ...]:
    return (Message("system", text),) if text else ()


def _input(value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", check_text(value, "input")),)
    if not isinstance(value, list) or not 1 <= len(value) <= limits.MAX_MESSAGES:
        raise BadInput(f"input must be a string or a list of 1 to {limits.MAX_MESSAGES} messages", param="input")
    return tuple(_message(Fields(item, prefix=f"input[{i}].")) for i, item in enumerate(value))


def _message(fields: Fields) -> Message:
    if fields.raw("type") not in (None, "message"):
        raise BadInput(f"{fields.param('type')}: only messages are supported", param=fields.param("type"))
    fields.ignore("id", "status", "phase")
    role = fields.required_text("role", max_chars=20)
    if role not in _ROLES:
        raise BadInput("unknown role", param=fields.param("role"), hint=f"one of: {', '.join(_ROLES)}")
    content, param = fields.raw("content"), fields.param("content")
    fields.finish()
    if isinstance(content, str):
        return Message(role, check_text(content, param))
    return Message(role, text_parts(content, param, _PARTS))


def _format(value: object) -> Format:
    if value is None:
        return Format()
    text = Fields(value, prefix="text.")
    options.refuse_meaningful(text, {"verbosity": ("medium",)})
    inner = text.raw("format")
    text.finish()
    if inner is None:
        return Format()
    fields = Fields(inner, prefix="text.format.")
    kind = options.format_kind(fields)
    schema = options.named_schema(fields) if kind is FormatKind.JSON_SCHEMA else ""
    fields.finish()
    return Format(kind, schema)


def _format_told(value: object) -> object:
    """The format as the app gave it, which `_format` has checked."""
    given = value.get("format") if isinstance(value, dict) else None
    return given or {"type": "text"}


def _metadata(value: object) -> dict[str, str]:
    """Up to 16 words, which the answer repeats."""
    if value is None:
        return {}
    fields = Fields(value, prefix="metadata.")
    assert isinstance(value, dict)  # noqa: S101 - Fields refused anything else
    if len(value) > 16 or any(len(key) > 64 for key in value):
        raise BadInput("metadata has at most 16 keys of at most 64 characters", param="metadata")
    texts = {check_text(key, "metadata"): fields.text(key, max_chars=512) for key in value}
    return {key: text for key, text in texts.items() if text is not None}
