"""Who may ask, how much may be sent, and that nothing from outside makes a 5xx."""

from __future__ import annotations

import json

import httpx
import pytest
import trio

from meshd.api import gate
from meshd.api.app import build_app
from meshd.api.serve import serve
from meshd.core import limits
from tests.api.fake_service import FakeService
from tests.api.running import HELLO, TOKEN, Api, read_until, running
from tests.helpers import until


def error_of(answer: httpx.Response, status: int) -> dict[str, str | None]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) - {"hint"} == {"message", "type", "param", "code"}
    assert isinstance(error, dict)
    return error


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", f"Basic {TOKEN}", "Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "é"],
)
async def test_without_the_token_nothing_answers(authorization: str | None) -> None:
    async with running(FakeService()) as api, httpx.AsyncClient(base_url=api.url, trust_env=False) as stranger:
        headers = {} if authorization is None else {"Authorization": authorization.encode()}
        for path in ("/v1/models", "/mesh/v1/status", "/nowhere"):
            answer = await stranger.get(path, headers=headers)
            error = error_of(answer, 401)
            assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert (await stranger.get("/healthz")).json() == {"ok": True}
        assert (await api.http.get("/v1/models", headers={"Authorization": f"bearer {TOKEN}"})).status_code == 200
    assert api.service.calls == []


async def test_an_empty_token_admits_nobody_and_a_new_one_counts_at_once() -> None:
    tokens = [""]
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, build_app(FakeService(), lambda: tokens[-1]), "127.0.0.1", 0)
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            assert (await http.get("/v1/models", headers={"Authorization": "Bearer"})).status_code == 401
            tokens.append("new")
            assert (await http.get("/v1/models", headers={"Authorization": "Bearer new"})).status_code == 200
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:99"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost@evil.example"}, 403),
        ({"Host": "evil.example@localhost"}, 403),
        ({"Host": "localhost:99999"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "file://localhost"}, 403),
    ],
)
async def test_host_and_origin_must_be_this_machine(headers: dict[str, str], status: int) -> None:
    async with running(FakeService()) as api:
        for path in ("/v1/models", "/healthz"):
            answer = await api.http.get(path, headers=headers)
            assert answer.status_code == status
            if status == 403:
                assert error_of(answer, 403)["code"] == "forbidden"


BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"null",
    b"\xff\xfe\x00",
    b"[" * 200_000,
    b'{"model": NaN}',
    b'{"model": "m", "model": "m"}',
    b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"\\ud800","messages":[{"role":"user","content":"x"}]}',
    b'{"model":"m","messages":[{"role":"user","content":"a\\u0000"}]}',
    b'{"model":"m","messages":[{"role":"user","content":"x"}],"\\ud800":1}',
    b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    b'{"model":"m","messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 5000 + b"}",
]


POSTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/mesh/v1/tokenize",
    "/mesh/v1/detokenize",
    "/mesh/v1/invites",
    "/mesh/v1/models",
)


async def test_bad_bodies_get_400_and_the_connection_lives() -> None:
    async with running(FakeService()) as api:
        for path in POSTS:
            for body in BAD_BODIES:
                error = error_of(await api.http.post(path, content=body), 400)
                assert (error["code"], error["type"]) == ("invalid_request", "invalid_request_error")
        assert (await api.chat()).status_code == 200
    assert len(api.service.submitted) == 1


async def test_the_parameter_at_fault_is_named_with_a_hint() -> None:
    async with running(FakeService()) as api:
        error = error_of(await api.chat(temprature=1), 400)
        assert error["param"] == "temprature" and error["hint"]
        assert error_of(await api.chat(n=17), 400)["param"] == "n"


async def test_paths_and_methods_that_do_not_exist() -> None:
    async with running(FakeService()) as api:
        assert error_of(await api.http.get("/v1/nothing"), 404)["code"] == "not_found"
        assert error_of(await api.http.get("/v1/models/"), 404)["code"]
        assert error_of(await api.http.get("/v1/models/%00%ff"), 404)["code"] == "model_not_found"
        answer = await api.http.get("/v1/chat/completions")
        assert error_of(answer, 405)["code"] == "method_not_allowed" and answer.headers["Allow"] == "POST"


async def test_a_body_over_the_limit_gets_413_announced_or_not() -> None:
    big = b"x" * (gate.MAX_BODY_BYTES + 1)

    async def unannounced() -> object:
        for start in range(0, len(big), 1 << 20):
            yield big[start : start + (1 << 20)]

    async with running(FakeService()) as api:
        for content in (big, unannounced()):
            error = error_of(await api.http.post("/v1/completions", content=content), 413)  # type: ignore[arg-type]
            assert error["code"] == "invalid_request"
        assert (await api.chat()).status_code == 200


async def test_a_prompt_of_full_size_passes_and_a_larger_one_is_named() -> None:
    full = "\u00e9" * (limits.MAX_PROMPT_BYTES // 2)
    async with running(FakeService()) as api:
        body = json.dumps({"model": "m", "prompt": full}, ensure_ascii=False).encode()
        assert (await api.http.post("/v1/completions", content=body)).status_code == 200
        body = json.dumps({"model": "m", "prompt": full + "x"}, ensure_ascii=False).encode()
        assert error_of(await api.http.post("/v1/completions", content=body), 400)["param"] == "prompt"
    generation = api.service.submitted[0].generation
    assert generation is not None and generation.prompt.text == full


async def test_a_large_body_of_a_stranger_is_refused_and_leaves_nothing_behind() -> None:
    async with running(FakeService()) as api, httpx.AsyncClient(base_url=api.url, trust_env=False) as stranger:
        answer = await stranger.post("/v1/completions", content=b"x" * (4 << 20))
        assert error_of(answer, 401)["code"] == "invalid_api_key"


async def test_a_body_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_DISCARD_BYTES", 1 << 20)
    async with running(FakeService()) as api:
        stream = await api.connect()
        head = api.request(b"").replace(b"Content-Length: 0", b"Content-Length: 99999999999")
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await stream.send_all(head)
            while True:
                await stream.send_all(b"x" * 65536)
        await stream.aclose()
        assert (await api.chat()).status_code == 200


async def test_a_body_that_dribbles_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_TIMEOUT_S", 0.1)
    async with running(FakeService()) as api, await api.connect() as stream:
        await stream.send_all(api.request(b"{}").replace(b"Content-Length: 2", b"Content-Length: 9"))
        assert (await read_until(stream, b"request_timeout")).startswith(b"HTTP/1.1 408")


async def test_a_client_that_leaves_in_the_middle_of_its_body_costs_nothing() -> None:
    async with running(FakeService()) as api:
        stream = await api.connect()
        await stream.send_all(api.request(b"{}").replace(b"Content-Length: 2", b"Content-Length: 9"))
        await stream.aclose()
        assert (await api.chat()).status_code == 200
    assert len(api.service.submitted) == 1


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nHTTP2-Settings: !!\r\nConnection: Upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    ],
)
async def test_garbage_on_the_port_leaves_the_daemon_alive(bytes_sent: bytes) -> None:
    async with running(FakeService()) as api:
        stream = await api.connect()
        await stream.send_all(bytes_sent)
        await stream.send_eof()
        answer = await drain(stream)
        await stream.aclose()
        assert b" 200 " not in answer
        assert (await api.chat()).status_code == 200


async def drain(stream: trio.SocketStream) -> bytes:
    got = b""
    with trio.fail_after(5):
        try:
            while part := await stream.receive_some(65536):
                got += part
        except trio.BrokenResourceError:
            pass
    return got


async def test_pipelined_and_kept_alive_requests_all_answer() -> None:
    async with running(FakeService()) as api, await api.connect() as stream:
        one = api.request(json.dumps(HELLO).encode())
        await stream.send_all(one * 3)
        got = b""
        while got.count(b"Hello world") < 3:
            got += await read_until(stream, b"Hello world")
        await until(lambda: len(api.service.submitted) == 3, 5, "three jobs")


async def test_a_broken_route_is_a_500_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async with running(FakeService(failure=KeyError("secret"))) as api:
        answer = await api.http.get("/mesh/v1/status")
        error = error_of(answer, 500)
        assert error["code"] == "internal_error" and "secret" not in answer.text
        assert await alive(api)
    assert any("/mesh/v1/status" in r.getMessage() and r.exc_info for r in caplog.records)


async def alive(api: Api) -> bool:
    return (await api.http.get("/healthz")).status_code == 200
