"""The document that says what all routes take and answer: OpenAPI 3.1, from one table. Pure data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from meshd.api import contract
from meshd.api.openapi_asked import ASKED
from meshd.api.openapi_told import TOLD
from meshd.api.openapi_words import Schema, ref


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. ``asks`` and ``tells`` name schemas; ``event``: that of one event when the answer may be streamed.
    ``bare``: the body may be left out."""

    method: str
    path: str
    name: str
    summary: str
    tells: str
    asks: str = ""
    event: str = ""
    bare: bool = False


_CHAT = "Answers to a chat, whole or as server-sent events"
_POST = "post"

OPERATIONS = (
    Operation("get", contract.V1_MODELS, "listModels", "All models that some node offers now", "Models"),
    Operation("get", contract.V1_MODEL, "getModel", "One model by name", "Model"),
    Operation(_POST, contract.V1_CHAT, "chat", _CHAT, "ChatCompletion", "ChatRequest", "ChatCompletionChunk"),
    Operation(
        _POST, contract.V1_COMPLETIONS, "complete", "Text that goes on", "Completion", "CompletionRequest", "Completion"
    ),
    Operation(_POST, contract.V1_EMBEDDINGS, "embed", "Vectors of texts", "Embeddings", "EmbeddingsRequest"),
    Operation(
        _POST, contract.V1_RESPONSES, "respond", "One answer in text", "Response", "ResponsesRequest", "Document"
    ),
    Operation(_POST, contract.TOKENIZE, "tokenize", "The tokens of a text or a chat", "Tokens", "TokenizeRequest"),
    Operation(_POST, contract.DETOKENIZE, "detokenize", "The text of tokens", "Text", "DetokenizeRequest"),
    Operation("get", contract.HEALTH, "health", "Says that the daemon answers; asks for no token", "Health"),
    Operation("get", contract.OPENAPI, "openapi", "This document", "Document"),
    Operation("get", contract.STATUS, "status", "Me, peers, jobs, models, limits", "Status"),
    Operation("get", contract.NODES, "nodes", "All nodes that this one knows", "Nodes"),
    Operation("get", contract.JOBS, "jobs", "Running and recent jobs", "Jobs"),
    Operation(_POST, contract.SHARE, "share", "Opt in, and set the limits", "Share", "ShareRequest", bare=True),
    Operation(_POST, contract.UNSHARE, "unshare", "Opt out", "Share", "Nothing", bare=True),
    Operation(_POST, contract.PAUSE, "pause", "Take nothing for a while", "Share", "Nothing", bare=True),
    Operation(_POST, contract.RESUME, "resume", "Go on after a pause", "Share", "Nothing", bare=True),
    Operation(_POST, contract.DRAIN, "drain", "Finish, take nothing new", "Share", "DrainRequest", bare=True),
    Operation("get", contract.MODELS, "meshModels", "The models of the whole mesh", "MeshModels"),
    Operation(_POST, contract.MODELS, "addModel", "Register a GGUF file", "LocalModel", "AddModelRequest"),
    Operation("delete", contract.MODEL, "removeModel", "Forget a model; the file stays", "Empty"),
    Operation("get", contract.UPSTREAMS, "upstreams", "The servers that this node stands in front of", "Upstreams"),
    Operation(_POST, contract.UPSTREAMS, "addUpstream", "Stand in front of a server", "Upstream", "AddUpstreamRequest"),
    Operation("delete", contract.UPSTREAM, "removeUpstream", "Stand in front of it no longer", "Empty"),
    Operation(_POST, contract.INVITES, "invite", "A new invite", "Invite", "InviteRequest"),
    Operation(_POST, contract.NOOP, "noop", "No-op tasks, timed", "NoopReport", "NoopRequest", bare=True),
    Operation(_POST, contract.SHUTDOWN, "shutdown", "Ask the daemon to stop", "Empty", "Nothing", bare=True),
)
"""Every route, in the order in which people look for them."""


def path_of(path: str) -> str:
    """A route's path as OpenAPI writes it."""
    return path.replace(":path}", "}")


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _described(operation: Operation) -> Schema:
    content = _json(ref(operation.tells))
    if operation.event:
        words = f"Events, each of which holds JSON ({operation.event}); comments between them say what goes on."
        content["text/event-stream"] = {"schema": {"type": "string", "description": words}}
    described: Schema = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            "200": {"description": "Done", "content": content},
            "default": {"description": "Refused, or failed", "content": _json(ref("Error"))},
        },
    }
    if operation.path == contract.HEALTH:
        described["security"] = []
    if operation.asks:
        described["requestBody"] = {"required": not operation.bare, "content": _json(ref(operation.asks))}
    if "{name:path}" in operation.path:
        name: Schema = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        described["parameters"] = [name]
    return described


def document() -> dict[str, object]:
    """The whole document."""
    paths: dict[str, dict[str, object]] = {}
    for operation in OPERATIONS:
        paths.setdefault(path_of(operation.path), {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "meshd", "version": "1", "summary": "The API of one node, on loopback"},
        "paths": paths,
        "components": {
            "schemas": {**ASKED, **TOLD},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


@cache
def document_bytes() -> bytes:
    """The document as JSON, made once."""
    return json.dumps(document()).encode("ascii")
