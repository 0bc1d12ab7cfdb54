"""What apps get, as JSON schemas. Pure data; the views of the node are read off their dataclasses."""

from __future__ import annotations

from meshd.api.openapi_words import (
    BOOLEAN,
    COUNT,
    NUMBER,
    Schema,
    either,
    listed,
    nullable,
    ref,
    schema_of,
    told,
    words,
)
from meshd.node import views

_STRING: Schema = {"type": "string"}
_NULL: Schema = {"type": "null"}
_NOTHING: Schema = {"type": "array", "maxItems": 0}
_FINISH = nullable(words("stop", "length", "tool_calls"))

_JOB = told({"job": _STRING, "receipt": _STRING, "attempts": COUNT})
_MESH = either(_JOB, told({"jobs": listed(_JOB)}))
_USAGE = told(
    {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": told({"cached_tokens": COUNT}),
    }
)
_ERROR = told({"message": _STRING, "type": _STRING, "param": nullable(_STRING), "code": _STRING}, {"hint": _STRING})


def _head(object: str) -> dict[str, Schema]:
    return {"id": _STRING, "object": words(object), "created": COUNT, "model": _STRING}


_LOGPROB: dict[str, Schema] = {"token": _STRING, "bytes": listed(COUNT), "logprob": NUMBER}
_LOGPROBS = told({"content": listed(told({**_LOGPROB, "top_logprobs": listed(told(_LOGPROB))})), "refusal": _NULL})
_FUNCTION = told({"name": _STRING, "arguments": _STRING})
_CALL = told({"id": _STRING, "type": words("function"), "function": _FUNCTION})
_MESSAGE = told(
    {"role": words("assistant"), "content": nullable(_STRING), "refusal": _NULL}, {"tool_calls": listed(_CALL)}
)
_CALL_DELTA = told(
    {"index": COUNT, "function": told({"arguments": _STRING}, {"name": _STRING})},
    {"id": _STRING, "type": words("function")},
)
_DELTA = told({}, {"role": words("assistant"), "content": _STRING, "tool_calls": listed(_CALL_DELTA)})


def _choices(said: dict[str, Schema], logprobs: str) -> Schema:
    return listed(told({"index": COUNT, **said, "logprobs": nullable(ref(logprobs)), "finish_reason": _FINISH}))


_COMPLETION_LOGPROBS = told(
    {
        "tokens": listed(_STRING),
        "token_logprobs": listed(NUMBER),
        "top_logprobs": nullable(listed({"type": "object", "additionalProperties": NUMBER})),
        "text_offset": listed(COUNT),
    }
)
_MODEL = told(
    {
        "id": _STRING,
        "object": words("model"),
        "created": COUNT,
        "owned_by": _STRING,
        "mesh": told(
            {
                "digest": _STRING,
                "context_tokens": COUNT,
                "nodes": listed(_STRING),
                "ready": listed(_STRING),
                "local": BOOLEAN,
                "abilities": listed(_STRING),
            }
        ),
    }
)
_VECTOR = told({"object": words("embedding"), "index": COUNT, "embedding": either(_STRING, listed(NUMBER))})
_PART = told({"type": words("output_text"), "text": _STRING, "annotations": _NOTHING, "logprobs": _NOTHING})
_ITEM = told(
    {
        "id": _STRING,
        "type": words("message"),
        "status": words("in_progress", "completed", "incomplete"),
        "role": words("assistant"),
        "content": listed(_PART),
    }
)
_RESPONSE_USAGE = told(
    {
        "input_tokens": COUNT,
        "input_tokens_details": told({"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
        "output_tokens": COUNT,
        "output_tokens_details": told({"reasoning_tokens": COUNT}),
        "total_tokens": COUNT,
    }
)
_RESPONSE = told(
    {
        "id": _STRING,
        "object": words("response"),
        "created_at": COUNT,
        "model": _STRING,
        "status": words("in_progress", "completed", "incomplete", "failed"),
        "output": listed(_ITEM),
        "usage": nullable(_RESPONSE_USAGE),
        "error": nullable(
            told({"code": _STRING, "message": _STRING, "mesh": told({"code": _STRING, "hint": _STRING})})
        ),
        "incomplete_details": nullable(told({"reason": _STRING})),
        "instructions": nullable(_STRING),
        "max_output_tokens": nullable(COUNT),
        "metadata": {"type": "object", "additionalProperties": _STRING},
        "temperature": NUMBER,
        "top_p": NUMBER,
        "text": told({"format": {"type": "object"}}),
        "user": nullable(_STRING),
        "background": BOOLEAN,
        "parallel_tool_calls": BOOLEAN,
        "previous_response_id": _NULL,
        "reasoning": told({"effort": _NULL, "summary": _NULL}),
        "store": BOOLEAN,
        "tool_choice": _STRING,
        "tools": _NOTHING,
        "truncation": _STRING,
    },
    {"mesh": ref("MeshAccount")},
)

_RESPONSE_EVENT = told(
    {"type": _STRING, "sequence_number": COUNT},
    {
        "response": ref("Response"),
        "item": _ITEM,
        "part": _PART,
        "item_id": _STRING,
        "output_index": COUNT,
        "content_index": COUNT,
        "delta": _STRING,
        "text": _STRING,
        "logprobs": _NOTHING,
    },
)

TOLD: dict[str, Schema] = {
    "Error": told({"error": _ERROR}),
    "MeshAccount": _MESH,
    "Usage": _USAGE,
    "Logprobs": _LOGPROBS,
    "CompletionLogprobs": _COMPLETION_LOGPROBS,
    "ChatCompletion": told(
        {
            **_head("chat.completion"),
            "choices": _choices({"message": _MESSAGE}, "Logprobs"),
            "usage": ref("Usage"),
            "mesh": ref("MeshAccount"),
        }
    ),
    "ChatCompletionChunk": told(
        {**_head("chat.completion.chunk"), "choices": _choices({"delta": _DELTA}, "Logprobs")},
        {"usage": nullable(ref("Usage")), "mesh": ref("MeshAccount")},
    ),
    "Completion": told(
        {**_head("text_completion"), "choices": _choices({"text": _STRING}, "CompletionLogprobs")},
        {"usage": nullable(ref("Usage")), "mesh": ref("MeshAccount")},
    ),
    "Response": _RESPONSE,
    "ResponseEvent": _RESPONSE_EVENT,
    "Embeddings": told(
        {
            "object": words("list"),
            "data": listed(_VECTOR),
            "model": _STRING,
            "usage": told({"prompt_tokens": COUNT, "total_tokens": COUNT}),
            "mesh": ref("MeshAccount"),
        }
    ),
    "Model": _MODEL,
    "Models": told({"object": words("list"), "data": listed(ref("Model"))}),
    "Tokens": told(
        {"tokens": listed(COUNT), "count": COUNT, "mesh": ref("MeshAccount")},
        {"pieces": listed(either(_STRING, listed(COUNT)))},
    ),
    "Text": told({"text": _STRING, "mesh": ref("MeshAccount")}),
    "Empty": told({}),
    "Health": told({"ok": BOOLEAN}),
    "Status": schema_of(views.StatusView),
    "Nodes": told({"nodes": listed(schema_of(views.NodeView))}),
    "Jobs": told({"jobs": listed(schema_of(views.JobView))}),
    "Share": schema_of(views.ShareView),
    "MeshModels": told({"models": listed(schema_of(views.MeshModelView))}),
    "LocalModel": schema_of(views.ModelView),
    "Upstreams": told({"upstreams": listed(schema_of(views.UpstreamView))}),
    "Upstream": schema_of(views.UpstreamView),
    "Invite": told({"invite": _STRING}),
    "NoopReport": schema_of(views.NoopReport),
    "Document": {"type": "object"},
}
"""What each route answers, by name."""
