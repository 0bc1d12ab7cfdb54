"""What every request passes first: who may ask, how much may be sent, and what happens when something breaks.

An ASGI wrapper. It reads the whole body (bounded in size and time) before the application runs, cancels the
application when the client goes away, and turns an unexpected exception into an error object.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from urllib.parse import urlsplit

import trio
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meshd.api.contract import HEALTH
from meshd.api.errors import error_response, plain_error
from meshd.core import limits
from meshd.core.errors import BadInput, NotAuthorised

MAX_BODY_BYTES = limits.MAX_PROMPT_BYTES * 2 + 64 * 1024
"""A prompt of full size, most of it escaped once, and the other fields."""

MAX_DISCARD_BYTES = 16 * MAX_BODY_BYTES
"""How much of a refused body is read and dropped, so that the client gets to read why."""

BODY_TIMEOUT_S = 30.0
"""A client on the same machine sends its body at once; one that does not is broken or hostile."""

_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_log = logging.getLogger("meshd.api")


class _Gone(Exception):
    """The client went away before its request was complete."""


def _header(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def _is_loopback_origin(origin: str, *, scheme_needed: bool) -> bool:
    try:
        parts = urlsplit(origin if scheme_needed else f"http://{origin}")
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = not (parts.path or parts.query or parts.fragment or parts.username or parts.password)
    return parts.scheme in ("http", "https") and plain and port_is_sound and parts.hostname in _LOOPBACK_NAMES


def _wrong_place(scope: Scope) -> str | None:
    """Why this request did not come from a program that meant this machine: a web page elsewhere can make a
    browser send requests here (DNS rebinding), but it cannot choose Host and Origin."""
    hosts = _header(scope, b"host")
    if len(hosts) != 1 or not _is_loopback_origin(hosts[0].decode("latin-1"), scheme_needed=False):
        return "the Host header must name this machine: 127.0.0.1, localhost or [::1]"
    origins = _header(scope, b"origin")
    if any(not _is_loopback_origin(o.decode("latin-1"), scheme_needed=True) for o in origins):
        return "requests from web pages of other machines are refused"
    return None


class Gate:
    """The ASGI wrapper. ``token`` is asked on every request, so that a new token counts at once."""

    def __init__(self, app: ASGIApp, token: Callable[[], str]) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "no websockets here"})
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        wrong = _wrong_place(scope)
        if wrong is not None:
            return plain_error(403, "forbidden", wrong)
        if scope["path"] == HEALTH or self._token_fits(_header(scope, b"authorization")):
            return None
        error = NotAuthorised("missing or wrong API key", hint="send 'Authorization: Bearer' and the node's token")
        return error_response(error, {"WWW-Authenticate": 'Bearer realm="meshd"'})

    def _token_fits(self, given: list[bytes]) -> bool:
        token = self._token().encode()
        if not token or len(given) != 1:
            return False
        kind, _, credential = given[0].strip().partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(credential.strip(), token)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body, refusal = await _read_body(scope, receive, self._refusal(scope))
        except _Gone:
            return
        if refusal is not None:
            # The answer may leave a body half read; then the connection cannot carry another request.
            refusal.headers["Connection"] = "close"
        app = self._app if refusal is None else refusal
        await _Request(app, scope, body, receive, send).run()


async def _read_body(scope: Scope, receive: Receive, refusal: Response | None) -> tuple[bytes, Response | None]:
    """The body, or the refusal to send instead. What is refused is read and dropped, within bounds."""
    announced = _header(scope, b"content-length")
    parts: list[bytes] = []
    size_bytes = 0
    with trio.move_on_after(BODY_TIMEOUT_S) as in_time:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            part: bytes = message.get("body", b"")
            size_bytes += len(part)
            if refusal is None and (size_bytes > MAX_BODY_BYTES or _announces_too_much(announced)):
                refusal = _too_large()
            if refusal is None:
                parts.append(part)
            else:
                parts.clear()
            if size_bytes > MAX_DISCARD_BYTES or not message.get("more_body", False):
                break
    if in_time.cancelled_caught:
        refusal = refusal or plain_error(408, "request_timeout", f"the body took longer than {BODY_TIMEOUT_S:g} s")
    return b"".join(parts), refusal


def _announces_too_much(announced: list[bytes]) -> bool:
    return any(not value.isdigit() or int(value[:20]) > MAX_BODY_BYTES for value in announced)


def _too_large() -> Response:
    return plain_error(413, BadInput.code, f"the body is larger than {MAX_BODY_BYTES} bytes")


class _Request:
    """One request whose body has been read: runs the application until it has answered or the client is gone."""

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        self._app, self._scope, self._body = app, scope, body
        self._receive, self._send = receive, send
        self._started = self._complete = False

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_client, nursery.cancel_scope)
            await self._answer()
            if not self._complete:
                nursery.cancel_scope.cancel()

    async def _watch_client(self, scope: trio.CancelScope) -> None:
        """Also empties the inbox until the connection says that this request is over: whoever leaves a body
        unread there would block the connection's reader for good."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._complete:
            scope.cancel()

    async def _answer(self) -> None:
        try:
            await self._app(self._scope, self._inner_receive, self._inner_send)
        except Exception:  # noqa: BLE001 - the door of the API: one broken route must not stop the daemon
            _log.exception("unexpected error in %s %r", self._scope["method"], self._scope["path"])
            if not self._started:
                failure = plain_error(500, "internal_error", "internal error; the daemon's log has the details")
                await failure(self._scope, self._inner_receive, self._inner_send)

    async def _inner_receive(self) -> Message:
        body, self._body = self._body, b""
        return {"type": "http.request", "body": body, "more_body": False}

    async def _inner_send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
        elif not message.get("more_body", False):
            self._complete = True
        await self._send(message)
