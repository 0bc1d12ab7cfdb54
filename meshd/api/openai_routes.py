"""The routes that OpenAI's clients call, and the two of ours that run work on a model as they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import trio
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from meshd.api import contract
from meshd.api.answer import Closing, Silence, StreamedAnswer, WholeAnswer
from meshd.api.asked import Request, TextRequest
from meshd.api.chat_chunks import StreamedChat, WholeChat
from meshd.api.chunks import Whole
from meshd.api.completion_chunks import StreamedCompletion, WholeCompletion
from meshd.api.errors import json_response
from meshd.api.jsonbody import decode
from meshd.api.parse_chat import parse_chat
from meshd.api.parse_completion import parse_completion
from meshd.api.parse_responses import parse_responses
from meshd.api.parse_vectors import parse_detokenize, parse_embeddings, parse_tokenize
from meshd.api.response_events import StreamedResponse, WholeResponse
from meshd.api.vectors import WholeEmbeddings, WholeTokens
from meshd.core.errors import UnknownModel
from meshd.core.ids import JobId
from meshd.core.job import Job
from meshd.node.views import MeshModelView, Service

LARGE_BODY_BYTES = 256 * 1024
"""Parsing more takes over 10 ms, at worst 200 ms: on a thread, so that heartbeats stay on time."""

Parsed = TypeVar("Parsed", bound=Request)

WholeOfText = type[WholeChat] | type[WholeCompletion] | type[WholeResponse]
StreamedOfText = type[StreamedChat] | type[StreamedCompletion] | type[StreamedResponse]


def _model_object(model: MeshModelView) -> dict[str, object]:
    """OpenAI's model object. The file's birth is not known, so ``created`` is 0."""
    mesh = {
        "digest": model.digest,
        "context_tokens": model.context_tokens,
        "nodes": list(model.nodes),
        "ready": list(model.ready),
        "local": model.local,
        "abilities": list(model.abilities),
    }
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "mesh", "mesh": mesh}


async def _parsed(request: HttpRequest, parser: Callable[[object], Parsed]) -> Parsed:
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
    """/v1: models, chat completions, completions, embeddings, responses; and tokens under /mesh/v1."""

    def __init__(self, service: Service, closing: Closing, silence: Silence) -> None:
        self._service = service
        self._closing = closing
        self._silence = silence

    def routes(self) -> list[Route]:
        """What the application serves for work on models."""
        return [
            Route(contract.V1_MODELS, self.models, methods=["GET"]),
            Route(contract.V1_MODEL, self.model, methods=["GET"]),
            Route(contract.V1_CHAT, self.chat, methods=["POST"]),
            Route(contract.V1_COMPLETIONS, self.completion, methods=["POST"]),
            Route(contract.V1_EMBEDDINGS, self.embeddings, methods=["POST"]),
            Route(contract.V1_RESPONSES, self.responses, methods=["POST"]),
            Route(contract.TOKENIZE, self.tokenize, methods=["POST"]),
            Route(contract.DETOKENIZE, self.detokenize, methods=["POST"]),
        ]

    async def models(self, request: HttpRequest) -> Response:
        """All models that some node of the mesh offers now."""
        data = [_model_object(m) for m in self._service.mesh_models()]
        return json_response({"object": "list", "data": data})

    async def model(self, request: HttpRequest) -> Response:
        """One model by name."""
        name = request.path_params["name"]
        for model in self._service.mesh_models():
            if model.name == name:
                return json_response(_model_object(model))
        raise UnknownModel(f"no node offers the model {name[:100]!r}", hint="GET /v1/models lists what there is")

    async def chat(self, request: HttpRequest) -> Response:
        """Chat completion, streamed or not."""
        return self._text(await _parsed(request, parse_chat), WholeChat, StreamedChat)

    async def completion(self, request: HttpRequest) -> Response:
        """Text completion, streamed or not."""
        return self._text(await _parsed(request, parse_completion), WholeCompletion, StreamedCompletion)

    async def responses(self, request: HttpRequest) -> Response:
        """A response, streamed or not."""
        return self._text(await _parsed(request, parse_responses), WholeResponse, StreamedResponse)

    async def embeddings(self, request: HttpRequest) -> Response:
        """Vectors of texts."""
        parsed = await _parsed(request, parse_embeddings)
        jobs, ids = self._jobs(parsed)
        return self._whole(jobs, WholeEmbeddings(parsed, ids))

    async def tokenize(self, request: HttpRequest) -> Response:
        """The tokens of a text."""
        parsed = await _parsed(request, parse_tokenize)
        jobs, ids = self._jobs(parsed)
        return self._whole(jobs, WholeTokens(parsed, ids))

    async def detokenize(self, request: HttpRequest) -> Response:
        """The text of tokens."""
        parsed = await _parsed(request, parse_detokenize)
        jobs, ids = self._jobs(parsed)
        return self._whole(jobs, WholeTokens(parsed, ids))

    def _jobs(self, parsed: Request) -> tuple[tuple[Job, ...], tuple[JobId, ...]]:
        jobs = parsed.jobs(self._service.new_job_id, self._service.new_seed())
        return jobs, tuple(job.id for job in jobs)

    def _text(self, parsed: TextRequest, whole: WholeOfText, streamed: StreamedOfText) -> Response:
        jobs, ids = self._jobs(parsed)
        created_s = int(time.time())
        if not parsed.stream:
            return self._whole(jobs, whole(parsed, ids, created_s))
        render = streamed(parsed, ids, created_s)
        return _Deferred(StreamedAnswer(self._service, jobs, render, self._closing, self._silence))

    def _whole(self, jobs: tuple[Job, ...], render: Whole) -> Response:
        return _Deferred(WholeAnswer(self._service, jobs, render, self._closing))
