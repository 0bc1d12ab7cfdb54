"""HTTP to an OpenAI-compatible server. The only file here that imports httpx; its errors end at this door.

The other side is somebody else's program: every size and every wait is bounded, nothing is followed elsewhere, and
the key goes to the named address only.
"""

from __future__ import annotations

import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Final

import httpx
import trio

from meshd.core.errors import BadInput, EngineFailed
from meshd.core.upstream import Upstream
from meshd.engine.config import UpstreamConfig
from meshd.engine.sse import EventReader, EventTooLarge
from meshd.engine.upstream_faults import Away, Garbled, Refusal, Silent, readable

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""Of an answer that is no stream: 32 vectors of 16,384 numbers, as long as JSON can write them."""

MAX_ERROR_BYTES: Final = 64 * 1024

KEPT_IDLE_S: Final = 2.0
"""Shorter than any server keeps an idle connection: a request never meets one that is just being closed."""

LOOP_JSON_BYTES: Final = 64 * 1024
"""Longer JSON is read in a thread."""


class Server:
    """One server, under one key. Close it with `close`."""

    def __init__(self, upstream: Upstream, config: UpstreamConfig) -> None:
        self._base = upstream.url
        self._config = config
        self._secret = upstream.key.encode()
        headers = {"Accept-Encoding": "identity"} | (
            {"Authorization": f"Bearer {upstream.key}"} if upstream.key else {}
        )
        tls = ssl.create_default_context() if self._base.startswith("https:") else False
        # No proxy and no .netrc from the environment: prompts and key go where the owner said, and nowhere else.
        self._http = httpx.AsyncClient(
            headers=headers,
            verify=tls,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=config.connect_timeout_s),
            limits=httpx.Limits(max_connections=upstream.slots + 4, keepalive_expiry=KEPT_IDLE_S),
        )

    async def close(self) -> None:
        """End every connection."""
        await self._http.aclose()

    async def get(self, path: str, timeout_s: float) -> Any:
        """The JSON at ``path``. Raises Refusal, Away, Garbled, Silent."""
        return await self._whole("GET", path, None, timeout_s)

    async def post(self, path: str, body: Mapping[str, Any], timeout_s: float) -> Any:
        """What the server answers to ``body``, which asked for no stream. Raises as `get`."""
        return await self._whole("POST", path, body, timeout_s)

    async def _whole(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> Any:
        with trio.move_on_after(timeout_s):
            answer = await self._open(method, path, body)
            try:
                return await _parsed(await _read(answer, MAX_ANSWER_BYTES, self._secret))
            finally:
                await answer.aclose()
        raise Silent(f"the server did not answer within {timeout_s:g} s")

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[Events]:
        """The events that the server answers to ``body`` with, while the context is open; leaving it early closes
        the connection. Raises Refusal, Away, Garbled, Silent."""
        due_s = trio.current_time() + self._config.first_token_timeout_s
        answer = None
        with trio.move_on_at(due_s):
            answer = await self._open("POST", path, body)
        if answer is None:
            raise Silent(f"the server did not answer within {self._config.first_token_timeout_s:g} s")
        try:
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                raise Garbled("the server answers with something else than a stream of events")
            events = Events(answer, self._config, due_s, self._secret)
            try:
                yield events
            finally:
                await events.close()
        finally:
            await answer.aclose()

    async def _open(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx.Response:
        """A good answer whose body is still to be read; closed again when it is not good."""
        try:
            request = self._http.build_request(method, self._base + path, json=body)
        except (ValueError, RecursionError, httpx.InvalidURL):
            raise BadInput("the request cannot be written as JSON") from None
        with _translated():
            answer = await self._http.send(request, stream=True)
        try:
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise Garbled("the server packs its answers although it was asked not to")
            if not answer.is_success:
                raise await _refusal(answer, self._secret)
        except BaseException:
            await answer.aclose()
            raise
        return answer


class Events:
    """What a stream says, one JSON object after the other."""

    def __init__(self, answer: httpx.Response, config: UpstreamConfig, due_s: float, secret: bytes) -> None:
        self._secret = secret
        self._raw = answer.aiter_raw()
        self._reader = EventReader()
        self._waiting: deque[bytes] = deque()
        self._stall_s = config.stall_timeout_s
        self._due_s = due_s
        self._begun = False

    def begun(self) -> None:
        """The first token is there: from now on silence is judged by what is usual between two."""
        self._begun = True
        self._due_s = trio.current_time() + self._stall_s

    def hurry(self, wait_s: float) -> None:
        """What matters is there: wait no longer than so for all the rest."""
        self._begun = False
        self._due_s = trio.current_time() + wait_s

    @property
    def waiting(self) -> bool:
        """Whether the next event is there already."""
        return bool(self._waiting)

    async def next(self) -> dict[str, Any] | None:
        """The next event; None when the server says that all is said, or just hangs up in good order.

        Raises Away (the connection broke), Garbled (no JSON object, or without end), Silent.
        Comments that only keep the connection alive are silence, too.
        """
        with trio.move_on_at(self._due_s):
            while not self._waiting:
                if not await self._receive():
                    return None
            if self._begun:
                self._due_s = trio.current_time() + self._stall_s
            return _event(_unnamed(self._waiting.popleft(), self._secret))
        raise Silent("the server went silent" + (" in the middle of its answer" if self._begun else ""))

    async def _receive(self) -> bool:
        with _translated():
            try:
                received = await anext(self._raw)
            except StopAsyncIteration:
                return False
        try:
            self._waiting.extend(self._reader.feed(received))
        except EventTooLarge:
            raise Garbled("the server sends an event without end") from None
        return True

    async def close(self) -> None:
        """Nothing more will be read."""
        await _abandon(self._raw)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except httpx.ConnectTimeout:
        raise Away("the server does not take the connection in time") from None
    except (httpx.TransportError, httpx.StreamError, OSError) as e:
        raise Away(f"the connection failed: {readable(e) or type(e).__name__}") from None


def _event(data: bytes) -> dict[str, Any] | None:
    if data == b"[DONE]":
        return None
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise Garbled("the server sends an event that is no JSON object")
    return event


def _unnamed(data: bytes, secret: bytes) -> bytes:
    """``data`` without the key: a server that repeats it must not put it into logs, nor on other machines."""
    return data.replace(secret, b"***") if secret and secret in data else data


async def _read(answer: httpx.Response, max_bytes: int, secret: bytes) -> bytes:
    """The whole body, at most ``max_bytes`` of it, without the key; Garbled when there is more."""
    parts: list[bytes] = []
    size_bytes = 0
    with _translated():
        raw = answer.aiter_raw()
        try:
            async for part in raw:
                size_bytes += len(part)
                if size_bytes > max_bytes:
                    raise Garbled(f"the server answers with more than {max_bytes} bytes")
                parts.append(part)
        finally:
            await _abandon(raw)
    return _unnamed(b"".join(parts), secret)


async def _abandon(raw: AsyncIterator[bytes]) -> None:
    """Read no more. The library's reader is a chain of generators, and closing the outermost would leave the others to
    the garbage collector; a cancelled read ends them all, from the innermost on. Never raises."""
    with trio.CancelScope() as scope, suppress(httpx.HTTPError, httpx.StreamError, OSError):
        scope.cancel()
        async for _ in raw:
            pass  # what was received already; the next read from the network is the cancelled one


async def _parsed(raw: bytes) -> Any:
    try:
        if len(raw) <= LOOP_JSON_BYTES:
            return json.loads(raw)
        return await trio.to_thread.run_sync(partial(json.loads, raw))
    except (ValueError, RecursionError):
        raise Garbled("the server answers with something else than JSON") from None


async def _refusal(answer: httpx.Response, secret: bytes) -> Refusal:
    """What the server said no with: OpenAI's error object, or whatever stands in its place."""
    try:
        raw = await _read(answer, MAX_ERROR_BYTES, secret)
        said = json.loads(raw)
    except (EngineFailed, ValueError, RecursionError):
        said = None
    error = said.get("error", said) if isinstance(said, dict) else None
    fields = error if isinstance(error, dict) else {"message": error or ""}
    text = fields.get("message") or fields.get("detail") or answer.reason_phrase
    code = " ".join(str(fields.get(key) or "") for key in ("code", "type"))[:200]
    return Refusal(answer.status_code, readable(text), code, _retry_after_s(answer.headers.get("retry-after", "")))


def _retry_after_s(text: str) -> float | None:
    """Seconds; a date is as good as nothing, for clocks differ."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
