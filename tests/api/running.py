"""The real application under the real server on a free port, and small clients for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import trio

from meshd.api.app import build_app
from meshd.api.serve import serve
from tests.api.fake_service import FakeService

TOKEN = "mesh-token"
SHUTDOWN_S = 15.0
"""The server cuts whatever still runs after 2.8 s; without that it would wait for the idle (30 s), for those who do
not read (60 s), or for ever."""

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@dataclass
class Api:
    url: str
    port: int
    service: FakeService
    http: httpx.AsyncClient

    async def chat(self, **fields: object) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json={**HELLO, **fields})

    async def openai(self, use: Callable[[openai.OpenAI], Any]) -> Any:
        """Run ``use`` with the unmodified client, in a thread, as an app would."""

        def work() -> Any:
            with openai.OpenAI(base_url=f"{self.url}/v1", api_key=TOKEN, max_retries=0, timeout=20) as client:
                return use(client)

        return await trio.to_thread.run_sync(work)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    def request(self, body: bytes, path: str = "/v1/chat/completions", *headers: str) -> bytes:
        """A raw HTTP request of a well-behaved client."""
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            f"Authorization: Bearer {TOKEN}",
            f"Content-Length: {len(body)}",
            *headers,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def running(service: FakeService, *, write_stall_s: float = 60, **options: Any) -> AsyncIterator[Api]:
    """The API of ``service`` until the block ends; the shutdown must not wait for anybody."""
    async with trio.open_nursery() as nursery:
        app = build_app(service, lambda: TOKEN, **options)

        async def start(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            await serve(app, "127.0.0.1", 0, write_stall_s=write_stall_s, task_status=task_status)

        url = await nursery.start(start)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20, trust_env=False) as http:
            yield Api(url, int(url.rpartition(":")[2]), service, http)
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < SHUTDOWN_S
    assert service.running == 0


def events_of(text: str) -> list[str]:
    """The SSE events and comments in ``text``, one string each."""
    assert text.endswith("\n\n")
    return text[:-2].split("\n\n")


def data_of(event: str) -> Any:
    assert event.startswith("data: ")
    return json.loads(event.removeprefix("data: "))


async def read_until(stream: trio.SocketStream, needle: bytes) -> bytes:
    """What came up to and with ``needle``; fails when the other side ends first."""
    got = b""
    with trio.fail_after(20):
        while needle not in got:
            part = await stream.receive_some(65536)
            assert part, got
            got += part
    return got
