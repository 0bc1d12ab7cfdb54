"""The application: every route of the local API behind one gate."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from meshd.api.answer import Closing, Silence
from meshd.api.errors import error_response, plain_error
from meshd.api.gate import Gate
from meshd.api.mesh_routes import MeshRoutes
from meshd.api.openai_routes import OpenAIRoutes
from meshd.core.errors import MeshError
from meshd.node.views import Service

KEEPALIVE_S = 10.0
"""Silence after which a stream gets a comment: well below the 60 s after which clients and proxies give up."""

DRAIN_S = 60.0
"""How long `drain` lets running work finish when the request names no deadline."""


def build_app(
    service: Service,
    token: Callable[[], str],
    *,
    keepalive_s: float = KEEPALIVE_S,
    patience_s: float = 0.0,
    drain_s: float = DRAIN_S,
) -> Starlette:
    """The local API of ``service``. ``token()`` is the bearer token that counts now; an empty one admits nobody.
    ``patience_s``: how long a job may wait for a worker; no stream begins with a comment before that.

    ``app.state.closing.close()`` ends every running answer with a typed error; `meshd.api.serve.serve` calls it.
    """
    closing = Closing()
    routes = [
        *OpenAIRoutes(service, closing, Silence(max(patience_s, keepalive_s), keepalive_s)).routes(),
        *MeshRoutes(service, drain_s).routes(),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Gate, token=token)],
        exception_handlers={HTTPException: _http_error, MeshError: _mesh_error},
    )
    app.router.redirect_slashes = False
    app.state.closing = closing
    return app


async def _mesh_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MeshError)  # noqa: S101 - registered for that class only
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """No such path, or not this method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for that class only
    headers = dict(error.headers or {})
    if error.status_code == 405:
        return plain_error(405, "method_not_allowed", f"{request.method} is not allowed here", headers=headers)
    if error.status_code == 404:
        return plain_error(404, "not_found", "no such path", hint="the API lives under /v1 and /mesh/v1")
    return plain_error(error.status_code, "invalid_request", error.detail, headers=headers)
