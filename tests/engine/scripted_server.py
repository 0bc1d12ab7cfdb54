"""An HTTP server of the tests' own, in the test's trio run, that says what a test wants: also what no server should."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

MODEL = "big"
CHAT, TEXT, EMBEDDINGS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models"
GREETING_TOKENS = 10
"""How long the prompt of a chat without an assistant's turn is here."""


@dataclass
class Asked:
    """One request, and the way to answer it."""

    path: str
    headers: dict[str, str]
    body: Any
    stream: trio.SocketStream

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def head(self, status: int = 200, kind: str = "application/json", **headers: object) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def json(self, value: Any, status: int = 200, **headers: object) -> None:
        raw = json.dumps(value).encode()
        await self.head(status, Content_Length=len(raw), **headers)
        await self.send(raw)

    async def refuse(self, status: int, message: str, **headers: object) -> None:
        await self.json({"error": {"message": message}}, status, **headers)

    async def begin(self) -> None:
        await self.head(kind="text/event-stream; charset=utf-8")

    async def event(self, value: Any) -> None:
        await self.send(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")

    async def say(self, *texts: str) -> None:
        """Pieces of a chat's answer."""
        for text in texts:
            await self.event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})

    async def end(self, finish: str = "stop", usage: dict[str, int] | None = None) -> None:
        await self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        if usage is not None:
            await self.event({"choices": [], "usage": usage})
        await self.event(b"[DONE]")


Handler = Callable[[Asked], Awaitable[None]]


@dataclass
class Scripted:
    """The server. Without a script it is a well-behaved one that continues an assistant's turn; ``script`` answers
    what it wants, by path. ``left``: set when a client hung up in the middle of `hold`."""

    script: dict[str, Handler] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    left: trio.Event = field(default_factory=trio.Event)
    port: int = 0
    continues: bool = True
    known: tuple[str, ...] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [asked.path for asked in self.asked]

    async def hold(self, asked: Asked) -> None:
        """Say nothing more until the client hangs up."""
        with trio.move_on_after(30):
            if await asked.stream.receive_some(1) == b"":
                self.left.set()

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, one request."""
        try:
            asked = await _request(stream)
            if asked is not None:
                self.asked.append(asked)
                await self.script.get(asked.path, self.behave)(asked)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client hung up, as it may
        finally:
            await stream.aclose()

    async def behave(self, asked: Asked) -> None:
        """As a good server does."""
        if asked.path == MODELS:
            await asked.json({"data": [{"id": "other"}, {"id": MODEL, "max_model_len": 8192}]})
        elif asked.path == EMBEDDINGS:
            await asked.refuse(400, "this model does not embed")
        elif (unknown := self._unknown(asked.body)) is not None:
            await asked.refuse(400, f"unknown field {unknown}")
        elif asked.body.get("stream"):
            await asked.begin()
            await asked.say("Hello")
            await asked.end()
        else:
            await asked.json(self._whole(asked))

    def _unknown(self, body: dict[str, Any]) -> str | None:
        usual = {
            "model",
            "messages",
            "prompt",
            "max_tokens",
            "stream",
            "stream_options",
            "temperature",
            "top_p",
            "seed",
        }
        return next((k for k in body if self.known is not None and k not in usual | set(self.known)), None)

    def _whole(self, asked: Asked) -> dict[str, Any]:
        begun = [m for m in asked.body.get("messages", ()) if m["role"] == "assistant"]
        usage = {"prompt_tokens": GREETING_TOKENS + len(begun) * (1 if self.continues else 5), "completion_tokens": 1}
        message = {"role": "assistant", "content": "."}
        return {"choices": [{"message": message, "text": ".", "finish_reason": "length"}], "usage": usage}


async def _request(stream: trio.SocketStream) -> Asked | None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := await stream.receive_some(65536)):
            return None
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(rest) < int(headers.get("content-length", 0)):
        rest += await stream.receive_some(65536)
    return Asked(first.split()[1], headers, json.loads(rest) if rest else None, stream)


@asynccontextmanager
async def scripted(server: Scripted | None = None) -> AsyncIterator[Scripted]:
    """A server on a free loopback port (on its own again, if it had one) while in the context."""
    server = server or Scripted()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(server.port, host="127.0.0.1")
        server.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()
