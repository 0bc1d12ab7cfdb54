"""What apps may send, as JSON schemas: the same bounds that the parsers hold. Pure data."""

from __future__ import annotations

from meshd.api import parse_completion, parse_inputs, parse_mesh, parse_options, parse_vectors
from meshd.api.openapi_words import (
    ANY,
    BOOLEAN,
    Schema,
    asked,
    either,
    many,
    nullable,
    number,
    ref,
    text,
    whole,
    words,
)
from meshd.core import limits
from meshd.core.classes import DataClass
from meshd.core.upstream import MAX_KEY_CHARS, MAX_SLOTS

_TEXT = text(limits.MAX_PROMPT_BYTES)
_MODEL = text(200, least=1)
_OBJECT: Schema = {"type": "object"}
_TOKEN = whole(0, parse_inputs.MAX_TOKEN_ID)
_TOKENS = many(_TOKEN, 1, limits.MAX_PROMPT_BYTES // 4)
_CLASSES = [str(data_class) for data_class in DataClass]
_REGION: Schema = {"type": "string", "maxLength": 300, "pattern": "^[a-z0-9-]{1,32}(/[a-z0-9-]{1,32}){0,7}$"}
_NAME: Schema = {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"}
_FORMAT_NAME: Schema = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_ID = text(200, least=1)


def _inputs(most: int) -> Schema:
    """Text or tokens, one or several."""
    return either(_TEXT, many(_TEXT, 1, most), _TOKENS, many(_TOKENS, 1, most))


_MESH = asked({}, {"class": words(*_CLASSES), "regions": many(_REGION, 0, 16), "exact": BOOLEAN})
_STREAM: dict[str, Schema] = {
    "stream": BOOLEAN,
    "stream_options": asked({}, {"include_usage": BOOLEAN, "include_obfuscation": ANY}),
}
_BIASES: Schema = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,10}$"},
    "additionalProperties": number(-100, 100),
    "maxProperties": limits.MAX_BIASES,
}
_SAMPLING: dict[str, Schema] = {
    "temperature": number(0, 5),
    "top_p": number(0, 1),
    "top_k": whole(0, 1_000_000),
    "min_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "seed": whole(0, 2**63 - 1),
    "logit_bias": _BIASES,
    "mesh": ref("MeshOptions"),
}
_STOP_TEXT = text(limits.MAX_STOP_BYTES, least=1)
_STOP: dict[str, Schema] = {"stop": either(_STOP_TEXT, many(_STOP_TEXT, 0, limits.MAX_STOPS))}
_MAX_TOKENS = whole(1, limits.MAX_OUTPUT_TOKENS)
_IGNORED: dict[str, Schema] = dict.fromkeys(parse_options.IGNORED, ANY)
_CHOICES = whole(1, parse_options.MAX_CHOICES)

_NAMED_SCHEMA = (
    {"name": _FORMAT_NAME, "schema": _OBJECT},
    {"description": text(limits.MAX_SCHEMA_BYTES), "strict": BOOLEAN},
)


def _part(*kinds: str) -> Schema:
    return asked({"type": words(*kinds), "text": _TEXT}, {"annotations": ANY, "logprobs": ANY})


def _content(*kinds: str) -> Schema:
    return either(_TEXT, many(_part(*kinds), 0, limits.MAX_MESSAGES))


def _message(role: Schema, **more: Schema) -> Schema:
    return asked({"role": role, "content": _content("text")}, {"name": text(200), "annotations": ANY, **more})


_CALL = asked(
    {"id": _ID, "function": asked({"name": _NAME}, {"arguments": _TEXT})}, {"type": words("function"), "index": ANY}
)
_ASSISTANT = asked(
    {"role": words("assistant"), "tool_calls": many(_CALL, 1, limits.MAX_TOOLS)},
    {"content": _content("text"), "name": text(200), "annotations": ANY},
)
_TOOL_MESSAGE = asked(
    {"role": words("tool"), "content": _content("text"), "tool_call_id": _ID}, {"name": text(200), "annotations": ANY}
)
_FUNCTION = asked(
    {"name": _NAME}, {"description": text(limits.MAX_SCHEMA_BYTES), "parameters": _OBJECT, "strict": BOOLEAN}
)
_MESSAGES = many(ref("ChatMessage"), 1, limits.MAX_MESSAGES)

_CHAT = asked(
    {"model": _MODEL, "messages": _MESSAGES},
    {
        **_IGNORED,
        **_STREAM,
        **_SAMPLING,
        **_STOP,
        "prediction": ANY,
        "max_tokens": _MAX_TOKENS,
        "max_completion_tokens": _MAX_TOKENS,
        "n": _CHOICES,
        "logprobs": BOOLEAN,
        "top_logprobs": whole(0, limits.MAX_TOP_LOGPROBS),
        "response_format": either(
            asked({"type": words("text", "json_object")}, {}),
            asked({"type": words("json_schema"), "json_schema": asked(*_NAMED_SCHEMA)}, {}),
        ),
        "tools": many(ref("Tool"), 0, limits.MAX_TOOLS),
        "tool_choice": either(
            words("none", "auto", "required"),
            asked({"type": words("function"), "function": asked({"name": _NAME}, {})}, {}),
        ),
        "parallel_tool_calls": BOOLEAN,
        "reasoning_effort": words("none"),
        "verbosity": words("medium"),
        "modalities": words(["text"]),
    },
)

_COMPLETION = asked(
    {"model": _MODEL, "prompt": _inputs(parse_completion.MAX_PROMPTS)},
    {
        **_IGNORED,
        **_STREAM,
        **_SAMPLING,
        **_STOP,
        "max_tokens": _MAX_TOKENS,
        "n": _CHOICES,
        "best_of": _CHOICES,
        "logprobs": whole(0, parse_completion.MAX_LOGPROBS),
        "echo": BOOLEAN,
        "suffix": words(""),
    },
)

_RESPONSE_MESSAGE = asked(
    {"role": words("user", "assistant", "system", "developer"), "content": _content("input_text", "output_text")},
    {"type": words("message"), "id": ANY, "status": ANY, "phase": ANY},
)
_RESPONSE_FORMAT = either(
    asked({"type": words("text", "json_object")}, {}),
    asked({"type": words("json_schema"), **_NAMED_SCHEMA[0]}, _NAMED_SCHEMA[1]),
)
_METADATA: Schema = {
    "type": "object",
    "propertyNames": text(64),
    "additionalProperties": nullable(text(512)),
    "maxProperties": 16,
}
_RESPONSES = asked(
    {"model": _MODEL, "input": either(_TEXT, many(_RESPONSE_MESSAGE, 1, limits.MAX_MESSAGES))},
    {
        **_IGNORED,
        **_STREAM,
        **_SAMPLING,
        "metadata": _METADATA,
        "user": text(1000),
        "instructions": _TEXT,
        "max_output_tokens": _MAX_TOKENS,
        "text": asked({}, {"format": _RESPONSE_FORMAT, "verbosity": words("medium")}),
        "parallel_tool_calls": ANY,
        "prompt_cache_options": ANY,
        "tool_choice": words("none", "auto"),
        "truncation": words("disabled"),
        "background": words(False),
    },
)

_EMBEDDINGS = asked(
    {"model": _MODEL, "input": _inputs(limits.MAX_INPUTS)},
    {
        "encoding_format": words("float", "base64"),
        "dimensions": whole(1, parse_vectors.MAX_DIMENSIONS),
        "user": ANY,
        "mesh": ref("MeshOptions"),
    },
)
_TOKENIZE_OPTIONS: dict[str, Schema] = {"special": BOOLEAN, "pieces": BOOLEAN, "mesh": ref("MeshOptions")}

_SITE: Schema = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}$"}
_INVITE = asked(
    {"site": _SITE, "region": _REGION, "clearance": words(*_CLASSES)},
    {
        "valid_s": number(1, parse_mesh.MAX_INVITE_VALID_S),
        "uses": whole(1, 10_000),
        "labels": many(text(64), 0, 16),
    },
)

_URL: Schema = {
    "type": "string",
    "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://([A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:.]{2,45}\])"
    r"(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]{0,200})?$",
}

ASKED: dict[str, Schema] = {
    "MeshOptions": _MESH,
    "ChatMessage": either(_message(words("system", "developer", "user", "assistant")), _ASSISTANT, _TOOL_MESSAGE),
    "Tool": asked({"type": words("function"), "function": _FUNCTION}, {}),
    "ChatRequest": _CHAT,
    "CompletionRequest": _COMPLETION,
    "ResponsesRequest": _RESPONSES,
    "EmbeddingsRequest": _EMBEDDINGS,
    "TokenizeRequest": either(
        asked({"model": _MODEL, "text": _TEXT}, _TOKENIZE_OPTIONS),
        asked({"model": _MODEL, "messages": _MESSAGES}, _TOKENIZE_OPTIONS),
    ),
    "DetokenizeRequest": asked({"model": _MODEL, "tokens": _TOKENS}, {"special": BOOLEAN, "mesh": ref("MeshOptions")}),
    "Nothing": asked({}, {}),
    "ShareRequest": asked({}, {"cpu": number(0.01, 1), "memory_bytes": whole(64 * 1024 * 1024, 2**50)}),
    "DrainRequest": asked({}, {"deadline_s": number(0, parse_mesh.MAX_DRAIN_S)}),
    "AddModelRequest": asked({"path": text(4096, least=1)}, {"name": text(200)}),
    "AddUpstreamRequest": asked(
        {"url": _URL, "model": text(200, least=1)},
        {
            "name": text(200),
            "class_max": words(*_CLASSES),
            "slots": whole(1, MAX_SLOTS),
            "context_tokens": whole(1, 2**30),
            "key": text(MAX_KEY_CHARS),
        },
    ),
    "InviteRequest": _INVITE,
    "NoopRequest": asked(
        {},
        {
            "worker": text(100),
            "count": whole(1, parse_mesh.MAX_NOOPS),
            "concurrency": whole(1, parse_mesh.MAX_NOOPS_AT_ONCE),
        },
    ),
}
"""What each route's body may be, by name."""
