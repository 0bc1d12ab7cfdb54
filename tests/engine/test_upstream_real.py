"""In front of servers that are not ours, with the tiny model: llama-cpp-python's own, and llama.cpp's where it is
installed. What comes through is what they answer when they are asked directly."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from meshd.core.ad import Ability
from meshd.core.chat import Message
from meshd.core.engine import EngineEvent, EngineFinished, EngineModel, EngineStarted, EngineTokens
from meshd.core.errors import BadInput
from meshd.core.generation import FinishReason, Format, FormatKind, Generation, Prompt, Sampling, Token
from meshd.core.job import Embedding, Work
from meshd.core.upstream import Upstream
from meshd.engine.engines import open_engines
from tests.engine.tiny import write_tiny
from tests.engine.upstream_server import MODEL, RealServer, free_port, real_server

TEXT = Prompt(text="Once upon a time")
CHAT = Prompt(messages=(Message("system", "be brief"), Message("user", "hello")))
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """The server, under a key."""
    model = write_tiny(tmp_path_factory.mktemp("served") / "tiny.gguf")
    with real_server(model, key="open-sesame") as server:
        yield server


async def done(
    upstream: Upstream, *works: tuple[Work, tuple[Token, ...]]
) -> tuple[EngineModel, list[list[EngineEvent]]]:
    """What is offered of ``upstream``, and the events of every piece of work, one after the other."""
    async with open_engines() as engines:
        with trio.fail_after(60):
            engines.upstreams.open(upstream, await engines.upstreams.learn(upstream))
            (model,) = engines.loaded()
            told = []
            for work, delivered in works:
                async with engines.generate(upstream.digest, work, delivered) as events:
                    told.append([event async for event in events])
    return model, told


def tokens_of(events: list[EngineEvent]) -> list[Token]:
    return [t for e in events if isinstance(e, EngineTokens) for t in e.tokens]


def text_of(events: list[EngineEvent]) -> str:
    return b"".join(t.piece for t in tokens_of(events)).decode()


def asked_directly(server: RealServer, path: str, body: dict[str, Any]) -> str:
    """The text that the server streams to an ordinary client that asks the same."""
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "temperature": 0, "stream": True}
    headers = {"Authorization": "Bearer open-sesame"}
    answer = httpx.post(f"{server.url}/{path}", json={**neutral, **body}, headers=headers, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    events = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")]
    choices = [event["choices"][0] for event in events]
    return "".join(c["text"] if "text" in c else c["delta"].get("content", "") for c in choices)


def upstream_of(server: RealServer, key: str = "open-sesame") -> Upstream:
    return Upstream("tiny", server.url, MODEL, slots=1, key=key)


async def test_text_and_chat_are_what_the_server_says(served: RealServer) -> None:
    text, chat = Generation(TEXT, GREEDY, 30), Generation(CHAT, GREEDY, 30)
    model, (told_text, told_chat) = await done(upstream_of(served), (text, ()), (chat, ()))
    assert isinstance(told_text[0], EngineStarted) and told_text[-1] == EngineFinished(FinishReason.LENGTH)
    assert text_of(told_text) == asked_directly(served, "completions", {"prompt": TEXT.text, "max_tokens": 30}) != ""
    messages = [{"role": m.role, "content": m.content} for m in CHAT.messages]
    direct = asked_directly(served, "chat/completions", {"messages": messages, "max_tokens": 30})
    assert text_of(told_chat) == direct != ""
    assert [t.index for t in tokens_of(told_chat)] == list(range(len(tokens_of(told_chat))))
    # Its template closes every turn: it cannot go on in the middle of one, and is not believed to.
    assert model.abilities == (Ability.GENERATE,) and model.has_chat_template


async def test_a_text_goes_on_where_it_broke_off(served: RealServer) -> None:
    work = Generation(TEXT, GREEDY, 30)
    _, (whole,) = await done(upstream_of(served), (work, ()))
    said = tuple(tokens_of(whole)[:5])
    _, (rest,) = await done(upstream_of(served), (work, said))
    assert tokens_of(rest)[0].index == 5 and tokens_of(rest)[-1].index < 30
    so_far = (TEXT.text or "") + b"".join(t.piece for t in said).decode()
    assert text_of(rest) == asked_directly(served, "completions", {"prompt": so_far, "max_tokens": 25})


async def test_a_schema_binds_the_answer(served: RealServer) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "enum": [4711]}}, "required": ["n"]}
    form = Format(FormatKind.JSON_SCHEMA, json.dumps(schema | {"additionalProperties": False}))
    _, (told,) = await done(upstream_of(served), (Generation(CHAT, GREEDY, 200, format=form), ()))
    assert json.loads(text_of(told)) == {"n": 4711}
    assert isinstance(told[-1], EngineFinished) and told[-1].reason is FinishReason.STOP


async def test_a_stop_string_stops_the_server(served: RealServer) -> None:
    whole = asked_directly(served, "completions", {"prompt": TEXT.text, "max_tokens": 30})
    stop = whole[5]
    _, (told,) = await done(upstream_of(served), (Generation(TEXT, GREEDY, 30, stop=(stop,)), ()))
    assert text_of(told) == whole[: whole.index(stop)]
    assert isinstance(told[-1], EngineFinished) and told[-1].reason is FinishReason.STOP


async def test_a_wrong_key_and_a_wrong_model_are_told_by_name(served: RealServer) -> None:
    wrong = (upstream_of(served, key="guess"), "key"), (upstream_of(served, key=""), "key")
    other = Upstream("tiny", served.url, "huge", key="open-sesame"), "model"
    async with open_engines() as engines:
        for upstream, param in (*wrong, other):
            with pytest.raises(BadInput) as refused:
                await engines.upstreams.learn(upstream)
            assert refused.value.param == param and "guess" not in refused.value.message + refused.value.hint
    assert MODEL in refused.value.hint


# -- llama.cpp's own server


@contextmanager
def llama_server(model: Path, *words: str) -> Iterator[str]:
    program = shutil.which("llama-server")
    if program is None:
        pytest.skip("llama-server is not installed")
    port = free_port()
    command = [program, "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-c", "2048", "--alias", MODEL]
    with subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            transport = httpx.HTTPTransport(retries=60)
            with httpx.Client(transport=transport, trust_env=False) as client:
                while client.get(f"http://127.0.0.1:{port}/health").status_code != 200:
                    assert process.poll() is None
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


async def test_llama_server_continues_a_turn(tmp_path: Path) -> None:
    with llama_server(write_tiny(tmp_path / "tiny.gguf"), "--jinja") as url:
        upstream = Upstream("tiny", url, MODEL)
        work = Generation(CHAT, GREEDY, 30)
        model, (whole,) = await done(upstream, (work, ()))
        assert Ability.RESUME in model.abilities and model.context_tokens > 0
        started = whole[0]
        assert isinstance(started, EngineStarted) and started.opening.prompt_tokens > 0
        _, (rest,) = await done(upstream, (work, tuple(tokens_of(whole)[:10])))
        assert text_of(whole)[10:12] in text_of(rest)


async def test_llama_server_embeds(tmp_path: Path) -> None:
    with llama_server(write_tiny(tmp_path / "tiny.gguf"), "--embeddings", "--pooling", "mean") as url:
        work = Embedding((Prompt(text="one"), Prompt(text="two")))
        model, (told,) = await done(Upstream("tiny", url, MODEL), (work, ()))
    assert Ability.EMBED in model.abilities
    one, two = (struct.unpack("<64f", t.piece) for t in tokens_of(told))
    assert one != two
