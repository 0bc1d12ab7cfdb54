"""The body of /v1/chat/completions to a request of ours. Pure: no clock, no randomness.

What is not understood is refused by name. What is understood and would change the answer, but is not done, is refused
as "not supported yet". Only fields that cannot change the answer are ignored.
"""

from __future__ import annotations

from meshd.api import parse_options as options
from meshd.api.asked import TextRequest
from meshd.api.fields import Fields
from meshd.api.parse_messages import messages_of
from meshd.core import limits
from meshd.core.chat import Tool, ToolChoice, ToolMode
from meshd.core.errors import BadInput
from meshd.core.generation import Generation, Prompt

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_OLD_TOOLS: dict[str, tuple[object, ...]] = {"functions": ([],), "function_call": ("none", "auto")}
_NO_ARGUMENTS = '{"type":"object","properties":{}}'


def parse_chat(body: object) -> TextRequest:
    """The chat request in a decoded JSON ``body``. Raises only BadInput, the sender's fault."""
    fields = Fields(body)
    fields.ignore(*options.IGNORED, "prediction")
    options.refuse_meaningful(fields, _NEUTRAL)
    options.refuse_meaningful(fields, _OLD_TOOLS, hint="it was replaced by tools and tool_choice")
    model = fields.required_text("model", max_chars=200)
    prompt = Prompt(messages=messages_of(fields.raw("messages")))
    constraints, exact = options.mesh_of(fields)
    sampling, seed = options.sampling_of(fields)
    tools = _tools(fields.raw("tools"))
    generation = Generation(
        prompt,
        sampling,
        _max_tokens(fields),
        options.stop_of(fields),
        exact,
        _top_logprobs(fields),
        options.response_format(fields.raw("response_format")),
        tools,
        _tool_choice(fields, bool(tools)),
    )
    stream, include_usage = options.stream_of(fields)
    n = fields.integer("n", 1, options.MAX_CHOICES) or 1
    fields.finish(options.HINT)
    return TextRequest(model, (generation,), seed, constraints, stream, n, include_usage)


def _max_tokens(fields: Fields) -> int | None:
    old = fields.integer("max_tokens", 1, limits.MAX_OUTPUT_TOKENS)
    new = fields.integer("max_completion_tokens", 1, limits.MAX_OUTPUT_TOKENS)
    if old is not None and new is not None and old != new:
        raise BadInput("max_tokens and max_completion_tokens differ", param="max_tokens", hint="give one of them")
    return old if new is None else new


def _top_logprobs(fields: Fields) -> int | None:
    wanted = fields.boolean("logprobs") or False
    top = fields.integer("top_logprobs", 0, limits.MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise BadInput("top_logprobs goes with logprobs: true only", param="top_logprobs", hint="set logprobs to true")
    return (top or 0) if wanted else None


def _tools(value: object) -> tuple[Tool, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > limits.MAX_TOOLS:
        raise BadInput(f"tools must be a list of at most {limits.MAX_TOOLS} tools", param="tools")
    return tuple(_tool(Fields(item, prefix=f"tools[{i}].")) for i, item in enumerate(value))


def _tool(fields: Fields) -> Tool:
    if fields.raw("type") != "function":
        raise BadInput(f"{fields.param('type')}: only functions are supported", param=fields.param("type"))
    function = Fields(fields.raw("function"), prefix=fields.param("function."))
    fields.finish()
    name = function.required_text("name", max_chars=64)
    description = function.text("description", max_chars=limits.MAX_SCHEMA_BYTES) or ""
    parameters = function.raw("parameters")
    text = _NO_ARGUMENTS if parameters is None else options.schema_text(parameters, function.param("parameters"))
    function.boolean("strict")  # arguments are held to their schema, strict or not
    function.finish()
    try:
        return Tool(name, description, text)
    except BadInput as error:
        raise BadInput(error.message, param=fields.param("function")) from None


def _tool_choice(fields: Fields, tools: bool) -> ToolChoice:
    parallel = fields.boolean("parallel_tool_calls")
    mode, name = _mode(fields.raw("tool_choice"))
    if not tools and mode is not ToolMode.REQUIRED:
        return ToolChoice()  # to call nothing of nothing is no contradiction
    return ToolChoice(mode, name, parallel is not False)


def _mode(value: object) -> tuple[ToolMode, str]:
    if value is None:
        return ToolMode.AUTO, ""
    if isinstance(value, str) and value in tuple(ToolMode):
        return ToolMode(value), ""
    hint = 'one of: "none", "auto", "required", {"type": "function", "function": {"name": ...}}'
    if not isinstance(value, dict):
        raise BadInput("no such tool_choice", param="tool_choice", hint=hint)
    fields = Fields(value, prefix="tool_choice.")
    if fields.raw("type") != "function":
        raise BadInput("tool_choice.type: only functions can be chosen", param="tool_choice.type", hint=hint)
    function = Fields(fields.raw("function"), prefix="tool_choice.function.")
    fields.finish()
    name = function.required_text("name", max_chars=64)
    function.finish()
    return ToolMode.REQUIRED, name
