"""A MeshError as OpenAI's error object: status, headers, bytes."""

from __future__ import annotations

import json
import math

from starlette.responses import Response

from meshd.api.contract import STATUS_OF
from meshd.core.errors import BadInput, MeshError, NoWorker, Overloaded

NO_WORKER_RETRY_S = 1
"""When no candidate is left, the next ad may bring one; ads come about once a second."""


def status_of(error: MeshError) -> int:
    """The HTTP status: that of the error's own code, else of the nearest base class that has one, else 500."""
    for cls in type(error).__mro__:
        status = STATUS_OF.get(getattr(cls, "code", ""))
        if status is not None:
            return status
    return 500


def _type_of(status: int, code: str) -> str:
    if code == Overloaded.code:
        return "overloaded_error"
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    return "invalid_request_error" if status < 500 else "server_error"


def error_object(
    message: str, *, status: int, code: str, param: str | None = None, hint: str = ""
) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object; ``hint`` is an addition of ours, present when there is one."""
    error: dict[str, str | None] = {
        "message": message,
        "type": _type_of(status, code),
        "param": param,
        "code": code,
    }
    if hint:
        error["hint"] = hint
    return {"error": error}


def mesh_error_object(error: MeshError) -> dict[str, dict[str, str | None]]:
    """The error object of ``error``."""
    param = error.param if isinstance(error, BadInput) else None
    return error_object(error.message, status=status_of(error), code=error.code, param=param, hint=error.hint)


def _retry_after(error: MeshError) -> dict[str, str]:
    if isinstance(error, Overloaded):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return {"Retry-After": str(NO_WORKER_RETRY_S)} if isinstance(error, NoWorker) else {}


def json_response(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """``body`` as ASCII JSON; whatever text is in it, the bytes are valid."""
    return Response(json.dumps(body), status, headers, media_type="application/json")


def error_response(error: MeshError, headers: dict[str, str] | None = None) -> Response:
    """The whole HTTP answer for ``error``."""
    return json_response(
        mesh_error_object(error), status=status_of(error), headers={**(headers or {}), **_retry_after(error)}
    )


def plain_error(
    status: int, code: str, message: str, *, hint: str = "", headers: dict[str, str] | None = None
) -> Response:
    """An HTTP-level refusal (no such path, wrong method, not allowed) in the same shape."""
    return json_response(error_object(message, status=status, code=code, hint=hint), status=status, headers=headers)
