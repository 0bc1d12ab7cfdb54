"""In front of a server that misbehaves in every way we can think of: bounded waits, bounded sizes, typed errors, and
back by itself when it is well. The server is the tests' own, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from meshd.core.ad import Ability
from meshd.core.chat import Message
from meshd.core.engine import EngineEvent, EngineFinished, EngineStarted, EngineTokens
from meshd.core.errors import BadInput, EngineFailed, MeshError, Overloaded, Unreachable
from meshd.core.generation import FinishReason, Generation, Opening, Prompt, Token
from meshd.core.job import Embedding, Tokenization
from meshd.core.upstream import Upstream
from meshd.engine.config import UpstreamConfig
from meshd.engine.engines import Engines, open_engines
from tests.engine.scripted_server import CHAT, EMBEDDINGS, MODEL, MODELS, TEXT, Asked, Scripted, scripted
from tests.helpers import until

PATIENT = UpstreamConfig(check_interval_s=0.2, max_rest_s=0.2)
HASTY = replace(PATIENT, first_token_timeout_s=0.8, stall_timeout_s=0.8, check_timeout_s=0.8, learn_timeout_s=10.0)
"""For servers that never answer; whoever answers at all does so in a millisecond."""

WORK = Generation(Prompt(messages=(Message("user", "hello"),)), max_tokens=50)
Handler = Callable[[Asked], Awaitable[None]]


def upstream_of(server: Scripted, **changes: Any) -> Upstream:
    return replace(Upstream("big-here", server.url, MODEL, slots=2), **changes)


@asynccontextmanager
async def fronted(server: Scripted, config: UpstreamConfig = PATIENT) -> AsyncIterator[tuple[Engines, Upstream]]:
    """Engines in front of ``server``, which was asked what it can do and is offered."""
    upstream = upstream_of(server)
    async with open_engines(upstream_config=config) as engines:
        engines.upstreams.open(upstream, await engines.upstreams.learn(upstream))
        yield engines, upstream


async def answer(
    engines: Engines, upstream: Upstream, work: Any = WORK, delivered: tuple[Token, ...] = ()
) -> list[EngineEvent]:
    async with engines.generate(upstream.digest, work, delivered) as events:
        return [event async for event in events]


def text_of(events: list[EngineEvent]) -> str:
    return b"".join(t.piece for e in events if isinstance(e, EngineTokens) for t in e.tokens).decode()


def state(engines: Engines) -> str:
    return engines.status()[0].state


async def is_ready(engines: Engines) -> None:
    """Wait until the upstream is back."""
    await until(lambda: engines.loaded() and state(engines) == "ready", 20.0, "the upstream is ready")


# -- learning


async def test_a_good_server_is_asked_and_offered_with_what_it_showed() -> None:
    async with scripted() as server, fronted(server) as (engines, upstream):
        (model,) = engines.loaded()
        assert (model.name, model.digest, model.context_tokens) == ("big-here", upstream.digest, 8192)
        assert model.device == "upstream" and str(model.class_max) == "internal" and model.slots == 2
        assert model.abilities == (Ability.GENERATE, Ability.RESUME)
        assert engines.slots_free(upstream.digest) == 2 and state(engines) == "ready"


@pytest.mark.parametrize("field", [False, True])
async def test_that_a_turn_is_continued_must_be_shown(field: bool) -> None:
    """By default, or only when it is asked for by name."""

    async def by_name(asked: Asked) -> None:
        server.continues = field and asked.body.get("continue_final_message") is True
        await server.behave(asked)

    async with scripted() as server:
        server.script[CHAT] = by_name
        async with fronted(server) as (engines, upstream):
            (model,) = engines.loaded()
            assert (Ability.RESUME in model.abilities) is field
            server.script.clear()
            await answer(engines, upstream, delivered=(Token(0, 0, b"Hel"),))
    last = server.asked[-1].body
    assert last["messages"][-1] == {"role": "assistant", "content": "Hel"}
    assert ("continue_final_message" in last) is field


async def test_fields_that_a_strict_server_refuses_are_left_out() -> None:
    async with scripted(Scripted(known=("top_k",))) as server, fronted(server) as (engines, upstream):
        await answer(engines, upstream)
        assert "top_k" in server.asked[-1].body and "min_p" not in server.asked[-1].body
        with pytest.raises(BadInput) as refused:
            await answer(engines, upstream, replace(WORK, sampling=replace(WORK.sampling, min_p=0.5)))
        assert refused.value.param == "min_p"


async def test_what_max_tokens_is_called_is_found_out() -> None:
    async def newer(asked: Asked) -> None:
        if "max_tokens" in asked.body:
            await asked.refuse(400, "max_tokens is not supported, use max_completion_tokens instead")
        else:
            await server.behave(asked)

    async with scripted() as server:
        server.script[CHAT] = newer
        async with fronted(server) as (engines, upstream):
            assert text_of(await answer(engines, upstream)) == "Hello"
            assert server.asked[-1].body["max_completion_tokens"] == 50


async def test_the_key_goes_along_and_a_redirection_is_not_followed() -> None:
    async def elsewhere(asked: Asked) -> None:
        await asked.head(302, Location=f"{other.url}/models", Content_Length=0)

    async with scripted() as server, scripted() as other, open_engines(upstream_config=PATIENT) as engines:
        upstream = upstream_of(server, key="very-secret")
        await engines.upstreams.learn(upstream)
        assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer very-secret"}
        server.script[MODELS] = repeats_key
        with pytest.raises(MeshError) as caught:
            await engines.upstreams.learn(upstream)
        assert "very-secret" not in caught.value.message and "***" in caught.value.message
        server.script[MODELS] = elsewhere
        with pytest.raises(Unreachable, match="302"):
            await engines.upstreams.learn(upstream)
        assert other.asked == []


async def repeats_key(asked: Asked) -> None:
    await asked.refuse(401, "wrong key: " + asked.headers["authorization"])


async def refuses_key(asked: Asked) -> None:
    await asked.refuse(401, "who are you?")


async def no_page(asked: Asked) -> None:
    await asked.refuse(404, "no such page")


async def html(asked: Asked) -> None:
    await asked.head(kind="text/html", Content_Length=6)
    await asked.send(b"<html>")


async def other_model(asked: Asked) -> None:
    await asked.json({"data": [{"id": "qwen\x1b[2J"}, {"id": "gemma"}]})


async def a_list(asked: Asked) -> None:
    await asked.json(["no", "object"])


async def deep(asked: Asked) -> None:
    raw = b"[" * 200_000
    await asked.head(Content_Length=len(raw))
    await asked.send(raw)


async def busy(asked: Asked) -> None:
    await asked.refuse(503, "loading", Retry_After=7)


async def broken(asked: Asked) -> None:
    await asked.refuse(500, "oops")


async def zipped(asked: Asked) -> None:
    await asked.head(Content_Encoding="gzip", Content_Length=4)
    await asked.send(b"\x1f\x8b\x08\x00")


async def noise(asked: Asked) -> None:
    await asked.send(b"\x00\xff" * 5000)


async def nothing(asked: Asked) -> None:
    await trio.sleep_forever()


async def endless_headers(asked: Asked) -> None:
    await asked.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await asked.send(b"X-More: " + b"x" * 1000 + b"\r\n")


async def endless_body(asked: Asked) -> None:
    await asked.head()
    while True:
        await asked.send(b"[" * 65536)


async def slow_body(asked: Asked) -> None:
    await asked.head()
    while True:
        await asked.send(b" ")
        await trio.sleep(HASTY.check_timeout_s / 10)


@pytest.mark.parametrize(
    ("handler", "kind", "param", "words"),
    [
        (refuses_key, BadInput, "key", "who are you?"),
        (no_page, BadInput, "url", "no OpenAI-compatible server"),
        (html, BadInput, "url", "no OpenAI-compatible server"),
        (other_model, BadInput, "model", "no model 'big'"),
        (a_list, BadInput, "url", "no OpenAI-compatible server"),
        (deep, BadInput, "url", "no OpenAI-compatible server"),
        (zipped, BadInput, "url", "packs"),
        (endless_body, BadInput, "url", "more than"),
        (busy, Overloaded, None, "loading"),
        (broken, Unreachable, None, "500"),
        (noise, Unreachable, None, "failed"),
        (endless_headers, Unreachable, None, "failed"),
        (nothing, Unreachable, None, "did not answer within 0.8 s"),
        (slow_body, Unreachable, None, "did not answer within 0.8 s"),
    ],
)
async def test_adding_says_what_is_wrong(
    handler: Handler, kind: type[MeshError], param: str | None, words: str
) -> None:
    config = HASTY if handler in (nothing, slow_body) else PATIENT
    async with scripted(Scripted({MODELS: handler})) as server, open_engines(upstream_config=config) as engines:
        with pytest.raises(kind, match=words) as refused, trio.fail_after(30):
            await engines.upstreams.learn(upstream_of(server))
        assert getattr(refused.value, "param", None) == param
        assert (refused.value.message + refused.value.hint).isprintable()
        assert server.paths() == [MODELS], "nothing more is asked of it"


async def test_adding_says_when_nobody_is_there_or_the_model_does_nothing() -> None:
    async with open_engines(upstream_config=PATIENT) as engines:
        async with scripted(Scripted({CHAT: no_page, TEXT: no_page})) as server:
            with pytest.raises(BadInput, match="neither answers nor embeds: this model does not embed") as refused:
                await engines.upstreams.learn(upstream_of(server))
            assert refused.value.param == "model"
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1"):
            await engines.upstreams.learn(upstream_of(server))


# -- answers


async def test_counts_that_come_at_the_end_are_told_at_the_end() -> None:
    async def counting(asked: Asked) -> None:
        await asked.begin()
        await asked.say("Hel", "lo")
        await asked.end("stop", {"prompt_tokens": 12, "completion_tokens": 4})

    async with scripted() as server, fronted(server) as (engines, upstream):
        server.script[CHAT] = counting
        events = await answer(engines, upstream)
        assert events[0] == EngineStarted(Opening(0)) and events[-1] == EngineFinished(FinishReason.STOP, 12)
        assert text_of(events) == "Hello"
        assert sum(len(e.tokens) for e in events if isinstance(e, EngineTokens)) == 4


async def cut_off(asked: Asked) -> None:
    await asked.head(kind="text/event-stream", Transfer_Encoding="chunked")
    event = b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\n'
    await asked.send(b"%x\r\n%s\r\n" % (len(event), event))


async def no_end(asked: Asked) -> None:
    await asked.begin()
    await asked.say("Hel")


async def done_without_end(asked: Asked) -> None:
    await asked.begin()
    await asked.say("Hel")
    await asked.event(b"[DONE]")


async def said_error(asked: Asked) -> None:
    await asked.begin()
    await asked.say("Hel")
    await asked.event({"error": {"message": "out of memory"}})


async def half_json(asked: Asked) -> None:
    await asked.begin()
    await asked.say("Hel")
    await asked.event(b'{"choices": [')


async def endless_line(asked: Asked) -> None:
    await asked.begin()
    await asked.say("Hel")
    while True:
        await asked.send(b"x" * 65536)


async def falls_silent(asked: Asked) -> None:
    await asked.begin()
    await asked.say("Hel")
    while True:
        await asked.send(b": still here\n\n")
        await trio.sleep(HASTY.stall_timeout_s / 8)


async def other_kind(asked: Asked) -> None:
    await asked.json({"choices": []})


@pytest.mark.parametrize(
    ("handler", "words", "rests"),
    [
        (cut_off, "connection failed", True),
        (no_end, "without an end", False),
        (done_without_end, "without an end", False),
        (said_error, "out of memory", False),
        (half_json, "no JSON object", True),
        (endless_line, "without end", True),
        (falls_silent, "silent in the middle", True),
        (other_kind, "something else than a stream", True),
        (nothing, "did not answer within", True),
        (html, "something else than a stream", True),
    ],
)
async def test_an_answer_that_breaks_is_a_lost_attempt_and_the_server_comes_back(
    handler: Handler, words: str, rests: bool
) -> None:
    before_any = handler in (other_kind, nothing, html)
    async with scripted() as server, fronted(server, HASTY) as (engines, upstream):
        server.script[CHAT] = handler
        told: list[EngineEvent] = []
        with pytest.raises(EngineFailed, match=words), trio.fail_after(30):
            async with engines.generate(upstream.digest, WORK, ()) as events:
                async for event in events:
                    told.append(event)
        assert text_of(told) == ("" if before_any else "Hel") and (told == []) is before_any
        assert (engines.loaded() == ()) is rests and (state(engines) == "resting") is rests
        if rests:
            assert words.split()[0] in engines.status()[0].reason and engines.slots_free(upstream.digest) == 0
            with pytest.raises(EngineFailed, match="away"):
                await answer(engines, upstream)
        server.script.clear()
        await is_ready(engines)
        assert text_of(await answer(engines, upstream)) == "Hello"


async def test_whoever_leaves_closes_the_request_and_frees_the_slot() -> None:
    async def holding(asked: Asked) -> None:
        await asked.begin()
        await asked.say("Hel")
        await server.hold(asked)

    async with scripted() as server, fronted(server) as (engines, upstream):
        server.script[CHAT] = holding
        async with engines.generate(upstream.digest, WORK, ()) as events:
            await anext(events)
            assert engines.slots_free(upstream.digest) == 1
        assert engines.slots_free(upstream.digest) == 2
        with trio.fail_after(10):
            await server.left.wait()
        assert state(engines) == "ready", "that nobody wants the rest is no fault of the server"


async def test_slots_are_bounded() -> None:
    async def holding(asked: Asked) -> None:
        await asked.begin()
        await asked.say("Hel")
        await server.hold(asked)

    async with scripted() as server, fronted(server) as (engines, upstream):
        server.script[CHAT] = holding
        async with engines.generate(upstream.digest, WORK, ()), engines.generate(upstream.digest, WORK, ()):
            with pytest.raises(Overloaded):
                await answer(engines, upstream)


async def test_a_busy_server_is_left_alone_for_as_long_as_it_says() -> None:
    async def slow_down(asked: Asked) -> None:
        await asked.refuse(429, "slow down", Retry_After=1)

    async with scripted() as server, fronted(server) as (engines, upstream):
        server.script[CHAT] = slow_down
        with pytest.raises(Overloaded, match="slow down") as refused:
            await answer(engines, upstream)
        assert refused.value.retry_after_s == 1 and engines.loaded() == ()
        began_s, asked = trio.current_time(), len(server.asked)
        await is_ready(engines)
        assert trio.current_time() - began_s >= 0.9
        assert set(server.paths()[asked:]) == {MODELS}, "it is not asked everything anew"


async def test_a_request_that_the_server_refuses_says_nothing_about_the_server() -> None:
    async def wrong(asked: Asked) -> None:
        await asked.refuse(400, "temperature must be 1")

    async with scripted() as server, fronted(server) as (engines, upstream):
        server.script[CHAT] = wrong
        with pytest.raises(BadInput, match="temperature must be 1"):
            await answer(engines, upstream)
        assert state(engines) == "ready"
        with pytest.raises(BadInput, match="tells no tokens"):
            await answer(engines, upstream, Tokenization(Prompt(text="x")))


# -- health


async def test_a_server_that_goes_is_not_offered_and_what_comes_back_is_asked_anew() -> None:
    changes: list[bool] = []
    server = Scripted()
    async with open_engines(upstream_config=PATIENT) as engines:
        engines.upstreams.on_change(lambda: changes.append(bool(engines.loaded())))
        async with scripted(server):
            engines.upstreams.open(upstream_of(server))
            assert engines.loaded() == () and state(engines) == "loading"
            await is_ready(engines)
            assert Ability.RESUME in engines.loaded()[0].abilities
        await until(lambda: not engines.loaded(), 20.0, "the upstream is away")
        assert state(engines) == "resting" and "connection failed" in engines.status()[0].reason
        server.continues = False
        async with scripted(server):
            await is_ready(engines)
            assert Ability.RESUME not in engines.loaded()[0].abilities
        assert changes[:3] == [True, False, True]


async def test_a_server_that_lost_the_model_or_the_key_is_not_offered() -> None:
    for handler, words in ((other_model, "has no model"), (refuses_key, "refuses the key")):
        async with scripted() as server, fronted(server) as (engines, _):
            server.script[MODELS] = handler
            await until(lambda e=engines: not e.loaded(), 20.0, "the upstream is away")  # type: ignore[misc]
            assert words in engines.status()[0].reason
            server.script.clear()
            await is_ready(engines)


async def test_while_an_answer_comes_the_server_need_not_answer_anything_else() -> None:
    """Some do one thing at a time."""
    flowing = trio.Event()

    async def flows(asked: Asked) -> None:
        await asked.begin()
        while not flowing.is_set():
            await asked.say("x")
            await trio.sleep(config.check_interval_s / 4)
        await asked.end()

    config = replace(HASTY, check_interval_s=0.3, check_timeout_s=0.5)
    async with scripted() as server, fronted(server, config) as (engines, upstream):
        server.script |= {CHAT: flows, MODELS: nothing}
        began_s = trio.current_time()
        async with engines.generate(upstream.digest, replace(WORK, max_tokens=None), ()) as events:
            async for _ in events:
                assert state(engines) == "ready"
                if trio.current_time() - began_s > 3 * (config.check_interval_s + config.check_timeout_s):
                    flowing.set()
        await until(lambda: not engines.loaded(), 20.0, "silent without an answer, it is away")


async def test_removed_while_it_answers_the_attempt_is_lost() -> None:
    async def holding(asked: Asked) -> None:
        await asked.begin()
        await asked.say("Hel")
        await server.hold(asked)

    async with scripted() as server, fronted(server) as (engines, upstream):
        server.script[CHAT] = holding
        with pytest.raises(EngineFailed), trio.fail_after(10):
            async with engines.generate(upstream.digest, WORK, ()) as events:
                await anext(events)
                engines.upstreams.close(upstream.digest)
                async for _ in events:
                    pass
        assert engines.loaded() == () and engines.status() == ()


# -- embeddings


async def test_embeddings_go_some_at_a_time_and_on_from_what_was_delivered() -> None:
    async def embeds(asked: Asked) -> None:
        data = [
            {"index": at, "embedding": [float(text)]} for at, text in enumerate(asked.body["input"]) if text != "Hi"
        ]
        data = data or [{"index": 0, "embedding": [0.5]}]
        await asked.json({"data": data, "usage": {"prompt_tokens": len(data)}})

    script = {EMBEDDINGS: embeds, CHAT: no_page, TEXT: no_page}
    async with scripted(Scripted(script)) as server, fronted(server) as (engines, upstream):
        assert engines.loaded()[0].abilities == (Ability.EMBED,)
        work = Embedding(tuple(Prompt(text=str(n)) for n in range(40)))
        events = await answer(engines, upstream, work, (Token(0, 0, b"\0\0\0\0"),))
    assert events[0] == EngineStarted(Opening(39)) and isinstance(events[-1], EngineFinished)
    tokens = [t for e in events if isinstance(e, EngineTokens) for t in e.tokens]
    assert [t.index for t in tokens] == list(range(1, 40)) and tokens[0].piece == b"\x00\x00\x80?"
    assert [len(asked.body["input"]) for asked in server.asked[-2:]] == [32, 7]


async def test_what_came_together_with_a_failure_is_told_before_it() -> None:
    """A connection hands over as much as arrived: the failure must not swallow the text in front of it."""

    async def at_once(asked: Asked) -> None:
        await asked.begin()
        said = [{"choices": [{"delta": {"content": text}}]} for text in ("Hel", "lo")]
        events = [*said, {"error": {"message": "out of memory"}}]
        await asked.send(b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events))

    async with scripted() as server, fronted(server) as (engines, upstream):
        server.script[CHAT] = at_once
        told: list[EngineEvent] = []
        with pytest.raises(EngineFailed, match="out of memory"):
            async with engines.generate(upstream.digest, WORK, ()) as events:
                async for event in events:
                    told.append(event)
        assert text_of(told) == "Hello" and isinstance(told[0], EngineStarted)


async def test_a_complete_answer_is_not_held_up_by_what_is_said_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talks_on(asked: Asked) -> None:
        await asked.begin()
        await asked.say("Hel")
        await asked.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        while True:
            await asked.event({"choices": []})
            await trio.sleep(afterword_s / 4)

    afterword_s = 0.2
    monkeypatch.setattr("meshd.engine.upstream.AFTERWORD_S", afterword_s)
    async with scripted() as server, fronted(server) as (engines, upstream):
        server.script[CHAT] = talks_on
        with trio.fail_after(20):
            events = await answer(engines, upstream)
        assert text_of(events) == "Hel" and isinstance(events[-1], EngineFinished)
