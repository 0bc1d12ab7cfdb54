"""The routes of our own: what the `mesh` client calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshd.api import contract, openapi
from meshd.api import parse_mesh as parse
from meshd.api.errors import json_response
from meshd.api.jsonbody import decode
from meshd.node.views import Service, ShareView

Endpoint = Callable[[Request], Awaitable[Response]]


class MeshRoutes:
    """/mesh/v1, /healthz and /openapi.json."""

    def __init__(self, service: Service, drain_s: float) -> None:
        self._service = service
        self._drain_s = drain_s

    def routes(self) -> list[Route]:
        """What the application serves beside /v1."""
        s = self._service
        return [
            Route(contract.HEALTH, self.health, methods=["GET"]),
            Route(contract.OPENAPI, self.openapi, methods=["GET"]),
            Route(contract.STATUS, self.status, methods=["GET"]),
            Route(contract.NODES, self.nodes, methods=["GET"]),
            Route(contract.JOBS, self.jobs, methods=["GET"]),
            Route(contract.SHARE, self.share, methods=["POST"]),
            Route(contract.UNSHARE, self._simple(s.unshare), methods=["POST"]),
            Route(contract.PAUSE, self._simple(s.pause), methods=["POST"]),
            Route(contract.RESUME, self._simple(s.resume), methods=["POST"]),
            Route(contract.DRAIN, self.drain, methods=["POST"]),
            Route(contract.MODELS, self.models, methods=["GET"]),
            Route(contract.MODELS, self.add_model, methods=["POST"]),
            Route(contract.MODEL, self.remove_model, methods=["DELETE"]),
            Route(contract.UPSTREAMS, self.upstreams, methods=["GET"]),
            Route(contract.UPSTREAMS, self.add_upstream, methods=["POST"]),
            Route(contract.UPSTREAM, self.remove_upstream, methods=["DELETE"]),
            Route(contract.INVITES, self.invite, methods=["POST"]),
            Route(contract.NOOP, self.noop, methods=["POST"]),
            Route(contract.SHUTDOWN, self.shutdown, methods=["POST"]),
        ]

    @staticmethod
    def _simple(act: Callable[[], Awaitable[ShareView]]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            parse.parse_nothing(decode(await request.body()))
            return json_response(asdict(await act()))

        return endpoint

    async def health(self, request: Request) -> Response:
        """Says that the daemon answers, and nothing else: no token is asked."""
        return json_response({"ok": True})

    async def openapi(self, request: Request) -> Response:
        """What all routes take and answer."""
        return Response(openapi.document_bytes(), media_type="application/json")

    async def status(self, request: Request) -> Response:
        """Me, peers, jobs, models, limits."""
        return json_response(asdict(await self._service.status()))

    async def nodes(self, request: Request) -> Response:
        """All nodes that this one knows."""
        return json_response({"nodes": [asdict(n) for n in await self._service.nodes()]})

    async def jobs(self, request: Request) -> Response:
        """Running and recent jobs."""
        return json_response({"jobs": [asdict(j) for j in await self._service.jobs()]})

    async def share(self, request: Request) -> Response:
        """Opt in, and set the limits."""
        cpu, memory_bytes = parse.parse_share(decode(await request.body()))
        return json_response(asdict(await self._service.share(cpu, memory_bytes)))

    async def drain(self, request: Request) -> Response:
        """Take nothing new; answers when idle."""
        deadline_s = parse.parse_drain(decode(await request.body()), self._drain_s)
        return json_response(asdict(await self._service.drain(deadline_s)))

    async def models(self, request: Request) -> Response:
        """The models of the whole mesh."""
        return json_response({"models": [asdict(m) for m in self._service.mesh_models()]})

    async def add_model(self, request: Request) -> Response:
        """Register a GGUF file of this machine."""
        path, name = parse.parse_add_model(decode(await request.body()))
        return json_response(asdict(await self._service.add_model(path, name)))

    async def remove_model(self, request: Request) -> Response:
        """Forget a model of this machine; the file stays."""
        parse.parse_nothing(decode(await request.body()))
        await self._service.remove_model(request.path_params["name"])
        return json_response({})

    async def upstreams(self, request: Request) -> Response:
        """The servers that this node stands in front of."""
        return json_response({"upstreams": [asdict(u) for u in await self._service.upstreams()]})

    async def add_upstream(self, request: Request) -> Response:
        """Stand in front of a server; answers when it was asked what it can do."""
        wanted = parse.parse_add_upstream(decode(await request.body()))
        return json_response(asdict(await self._service.add_upstream(wanted)))

    async def remove_upstream(self, request: Request) -> Response:
        """Stand in front of it no longer."""
        parse.parse_nothing(decode(await request.body()))
        await self._service.remove_upstream(request.path_params["name"])
        return json_response({})

    async def invite(self, request: Request) -> Response:
        """A new invite."""
        wanted = parse.parse_invite(decode(await request.body()))
        return json_response({"invite": await self._service.invite(wanted)})

    async def noop(self, request: Request) -> Response:
        """No-op tasks through the mesh, timed."""
        wanted = parse.parse_noop(decode(await request.body()))
        return json_response(asdict(await self._service.noop(wanted)))

    async def shutdown(self, request: Request) -> Response:
        """Ask the daemon to stop."""
        parse.parse_nothing(decode(await request.body()))
        await self._service.shutdown()
        return json_response({})
