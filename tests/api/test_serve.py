"""Binding, and the end of serving."""

from __future__ import annotations

import socket

import httpx
import pytest
import trio
from starlette.applications import Starlette

from meshd.api import serve as serve_module
from meshd.api.app import build_app
from meshd.api.serve import serve
from meshd.core.errors import BadInput, PortInUse
from tests.api.fake_service import FakeService
from tests.api.running import read_until, running
from tests.helpers import until


def app() -> Starlette:
    return build_app(FakeService(), lambda: "t")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org", ""])
async def test_only_loopback_is_served(host: str) -> None:
    with pytest.raises(BadInput) as caught:
        await serve(app(), host, 0)
    assert caught.value.param == "host"


async def test_a_taken_port_is_named_with_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=str(port)) as caught:
            await serve(app(), "127.0.0.1", port)
    assert caught.value.hint


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
async def test_the_url_that_is_told_answers(host: str) -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, app(), host, 0)
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{url}/healthz", headers={"Host": "localhost"})).status_code == 200
        nursery.cancel_scope.cancel()
    with pytest.raises(OSError, match=r"."):
        await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))


async def test_the_port_can_be_taken_again_at_once() -> None:
    port = 0
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(serve, app(), "127.0.0.1", port)
            port = int(url.rpartition(":")[2])
            async with httpx.AsyncClient(trust_env=False) as http:
                assert (await http.get(f"{url}/healthz")).status_code == 200
            nursery.cancel_scope.cancel()


async def test_idle_connections_do_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FINISH_S", "CUT_S", "SHUTDOWN_S"):
        monkeypatch.setattr(serve_module, name, 14.0)  # what a running answer would be given
    began = 0.0
    async with running(FakeService()) as api:
        silent = await api.connect()
        half = await api.connect()
        await half.send_all(b"GET /healthz HTTP/1.1\r\nHo")
        assert (await api.http.get("/healthz")).status_code == 200
        began = trio.current_time()
    assert trio.current_time() - began < 10
    await silent.aclose()
    await half.aclose()


async def test_half_a_request_head_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "IDLE_S", 0.1)
    async with running(FakeService()) as api, await api.connect() as stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHo")
        with trio.fail_after(5):
            assert await stream.receive_some(100) == b""


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "MAX_CONNECTIONS", 3)
    async with running(FakeService()) as api:
        held = [await api.connect() for _ in range(3)]
        for stream in held:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await read_until(stream, b'{"ok": true}')
        async with await api.connect() as fourth:
            with trio.fail_after(5):
                assert await fourth.receive_some(100) == b""
        await held.pop().aclose()

        async def served() -> bool:
            try:
                return (await api.http.get("/healthz")).status_code == 200
            except httpx.HTTPError:
                return False

        answers: list[bool] = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                while not answers or not answers[-1]:
                    answers.append(await served())

            nursery.start_soon(ask)
            await until(lambda: answers and answers[-1], 5, "a free place")
        for stream in held:
            await stream.aclose()
