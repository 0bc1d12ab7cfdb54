"""What we ask of an OpenAI-compatible server. Pure: work in, a path and a JSON body out.

What the server would not do, or do differently without saying so, is refused by name instead of left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from meshd.core import limits
from meshd.core.chat import Message, ToolChoice, ToolMode
from meshd.core.errors import BadInput, EngineFailed
from meshd.core.generation import FormatKind, Generation, Sampling, Token
from meshd.core.job import Embedding
from meshd.core.toolsyntax import HERMES
from meshd.core.upstream import Learnt

CHAT: Final = "/chat/completions"
TEXT: Final = "/completions"
EMBEDDINGS: Final = "/embeddings"

MAX_STOPS_SENT: Final = 4
"""OpenAI's own bound. The others are watched for at the submitter, which watches for these, too."""

EMBEDDED_AT_ONCE: Final = 32
CONTINUE_FIELDS: Final = {"continue_final_message": True, "add_generation_prompt": False}

NEUTRAL: Final[dict[str, Any]] = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "timings_per_token": True}
"""Fields beyond OpenAI's that some servers take, with the values that change nothing: their own defaults often do."""


@dataclass(frozen=True, slots=True)
class Request:
    """``skip``: blanks at the end of what was delivered, which templates cut off and the server may say again.
    ``limit``: how many tokens the whole answer may have. ``first``: the index of the next one."""

    path: str
    body: dict[str, Any]
    first: int
    limit: int
    skip: str = ""
    tool_syntax: str = ""


def generation_request(model: str, learnt: Learnt, work: Generation, delivered: Sequence[Token]) -> Request:
    """The request for ``work``, going on after ``delivered``.

    Raises BadInput (this cannot be asked of that server), EngineFailed (it cannot go on there after these tokens).
    """
    _check(learnt, work)
    said = _said(delivered)
    first, limit = len(delivered), work.max_tokens or limits.MAX_OUTPUT_TOKENS
    body: dict[str, Any] = {"model": model, "stream": True, **_sampling(work.sampling, learnt, first)}
    if learnt.usage:
        body["stream_options"] = {"include_usage": True}
    if work.max_tokens is not None:
        body[learnt.limit_field] = max(1, limit - first)
    if work.stop:
        body["stop"] = list(work.stop[:MAX_STOPS_SENT])
    if work.prompt.text is not None:
        return Request(TEXT, body | {"prompt": work.prompt.text + said}, first, limit)
    if said and (work.format.kind is not FormatKind.TEXT or (work.tools and HERMES.opener in said)):
        raise EngineFailed("an answer in a given form cannot go on in its middle at this server")
    body |= _tools(work) | _format(work, learnt)
    messages = [_message(m) for m in work.prompt.messages]
    kept = said.rstrip()
    if kept:
        messages.append({"role": "assistant", "content": kept})
        body |= CONTINUE_FIELDS if learnt.continue_field else {}
    syntax = HERMES.name if work.tools and work.tool_choice.calls else ""
    return Request(CHAT, body | {"messages": messages}, first, limit, said[len(kept) :], syntax)


def _check(learnt: Learnt, work: Generation) -> None:
    """Raise BadInput about the first thing that ``work`` asks for and the server cannot do."""
    is_text, sampling = work.prompt.text is not None, work.sampling
    formatted = work.format.kind is not FormatKind.TEXT
    for wrong, param, what in (
        (work.exact, "mesh.exact", "exact answers"),
        (work.top_logprobs is not None, "logprobs", "probabilities of tokens"),
        (bool(work.prompt.tokens), "prompt", "a prompt of token ids"),
        (is_text and not learnt.text, "prompt", "a prompt that is no chat"),
        (bool(work.prompt.messages) and not learnt.chat, "messages", "a chat"),
        (is_text and work.max_tokens is None, "max_tokens", "a completion without max_tokens"),
        (is_text and bool(work.tools), "tools", "tools outside a chat"),
        (formatted and (is_text or not learnt.schema_field), "response_format", "answers in a given form"),
        (sampling.top_k > 0 and "top_k" not in learnt.extras, "top_k", "top_k"),
        (sampling.min_p > 0 and "min_p" not in learnt.extras, "min_p", "min_p"),
    ):
        if wrong:
            raise BadInput(f"the server behind this model cannot be asked for {what}", param=param)


def _said(delivered: Sequence[Token]) -> str:
    try:
        return b"".join([token.piece for token in delivered]).decode()
    except UnicodeDecodeError:
        raise EngineFailed("the answer so far does not end with a whole character") from None


def _sampling(sampling: Sampling, learnt: Learnt, first: int) -> dict[str, Any]:
    """How to draw. A resumed answer draws with another seed, or it would repeat its own luck."""
    body: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": (sampling.seed + first) & 0x7FFFFFFF,
    }
    body |= {field: NEUTRAL[field] for field in learnt.extras}
    asked = {"top_k": sampling.top_k, "min_p": sampling.min_p}
    body |= {field: value for field, value in asked.items() if field in learnt.extras}
    penalties = {"presence_penalty": sampling.presence_penalty, "frequency_penalty": sampling.frequency_penalty}
    body |= {field: value for field, value in penalties.items() if value}
    if sampling.biases:
        body["logit_bias"] = {str(b.token): b.bias for b in sampling.biases}
    return body


def _message(message: Message) -> dict[str, Any]:
    # Only OpenAI's own newest models know a developer; to all others it is the system that speaks.
    role = "system" if message.role == "developer" else message.role
    out: dict[str, Any] = {"role": role, "content": message.content}
    if message.calls:
        out["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in message.calls
        ]
    if message.call_id:
        out["tool_call_id"] = message.call_id
    return out | ({"name": message.name} if message.name else {})


def _tools(work: Generation) -> dict[str, Any]:
    if not work.tools:
        return {}
    tools = []
    for tool in work.tools:
        function = {"name": tool.name, "parameters": _schema(tool.parameters, "tools")}
        function |= {"description": tool.description} if tool.description else {}
        tools.append({"type": "function", "function": function})
    return {"tools": tools, "tool_choice": _choice(work.tool_choice)} | (
        {} if work.tool_choice.parallel else {"parallel_tool_calls": False}
    )


def _choice(choice: ToolChoice) -> Any:
    if choice.mode is ToolMode.REQUIRED and choice.name:
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode.value


def _format(work: Generation, learnt: Learnt) -> dict[str, Any]:
    if work.format.kind is FormatKind.TEXT:
        return {}
    schema = _schema(work.format.schema, "response_format") if work.format.schema else {"type": "object"}
    return {"response_format": response_format(learnt.schema_field, schema)}


def response_format(field: str, schema: Any) -> dict[str, Any]:
    """A schema as the server wants it: OpenAI's way, or llama.cpp's older one."""
    if field == "json_object":
        return {"type": "json_object", "schema": schema}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _schema(text: str, param: str) -> Any:
    """The schema, such that it can be written as JSON again: it comes from other machines, and Python reads more."""
    try:
        schema = json.loads(text)
        json.dumps(schema, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise BadInput("a schema that is no JSON", param=param) from None
    return schema


def embedding_requests(model: str, work: Embedding) -> list[dict[str, Any]]:
    """The bodies that ask for all vectors, some at a time. Raises BadInput: inputs must be texts."""
    texts = [prompt.text for prompt in work.inputs]
    if any(text is None for text in texts):
        raise BadInput("the server behind this model takes texts only", param="input")
    runs = [texts[at : at + EMBEDDED_AT_ONCE] for at in range(0, len(texts), EMBEDDED_AT_ONCE)]
    return [{"model": model, "input": run, "encoding_format": "float"} for run in runs]
