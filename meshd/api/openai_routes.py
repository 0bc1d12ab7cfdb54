"""The routes that OpenAI's clients call."""

from __future__ import annotations

from collections.abc import Callable

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from meshd.api.answer import Closing, StreamedAnswer, WholeAnswer
from meshd.api.errors import json_response
from meshd.api.jsonbody import decode
from meshd.api.parse import ChatRequest, parse_chat, parse_completion
from meshd.core.errors import UnknownModel
from meshd.node.views import MeshModelView, Service

LARGE_BODY_BYTES = 256 * 1024
"""Parsing more takes over 10 ms, at worst 200 ms: on a thread, so that heartbeats stay on time."""


def _model_object(model: MeshModelView) -> dict[str, object]:
    """OpenAI's model object. The file's birth is not known, so ``created`` is 0."""
    mesh = {
        "digest": model.digest,
        "context_tokens": model.context_tokens,
        "nodes": list(model.nodes),
        "local": model.local,
    }
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "mesh", "mesh": mesh}


async def _parsed(request: Request, parser: Callable[[object], ChatRequest]) -> ChatRequest:
    body = await request.body()
    if len(body) <= LARGE_BODY_BYTES:
        return parser(decode(body))
    return await trio.to_thread.run_sync(lambda: parser(decode(body)))


class _Deferred(Response):
    """Lets an endpoint hand an ASGI answer of ours to the router, which calls it as it would a response."""

    def __init__(self, answer: WholeAnswer | StreamedAnswer) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


class OpenAIRoutes:
    """/v1: models, chat completions, completions."""

    def __init__(self, service: Service, closing: Closing, keepalive_s: float) -> None:
        self._service = service
        self._closing = closing
        self._keepalive_s = keepalive_s

    def routes(self) -> list[Route]:
        """What the application serves under /v1."""
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completion, methods=["POST"]),
        ]

    async def models(self, request: Request) -> Response:
        """All models that some node of the mesh offers now."""
        data = [_model_object(m) for m in self._service.mesh_models()]
        return json_response({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """One model by name."""
        name = request.path_params["name"]
        for model in self._service.mesh_models():
            if model.name == name:
                return json_response(_model_object(model))
        raise UnknownModel(f"no node offers the model {name[:100]!r}", hint="GET /v1/models lists what there is")

    async def chat(self, request: Request) -> Response:
        """Chat completion, streamed or not."""
        return self._run(await _parsed(request, parse_chat))

    async def completion(self, request: Request) -> Response:
        """Text completion, streamed or not."""
        return self._run(await _parsed(request, parse_completion))

    def _run(self, parsed: ChatRequest) -> Response:
        job = parsed.job(self._service.new_job_id(), self._service.new_seed())
        if parsed.stream:
            return _Deferred(StreamedAnswer(self._service, job, parsed, self._closing, self._keepalive_s))
        return _Deferred(WholeAnswer(self._service, job, parsed, self._closing))
