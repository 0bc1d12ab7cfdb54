"""What cannot be asked for is refused where it is said, by the name of its field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshd.core import limits
from meshd.core.chat import Message, Tool, ToolCall, ToolChoice, ToolMode
from meshd.core.errors import BadInput
from meshd.core.generation import Bias, Format, FormatKind, Generation, Opening, Prompt, Sampling
from meshd.core.ids import job_id
from meshd.core.job import Embedding, Job, TaskKind, Tokenization

PROMPT = Prompt("x")
WEATHER = Tool("weather", "tells it", '{"type": "object"}')

REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "no prompt": ("messages", Prompt),
    "text and tokens": ("messages", lambda: Prompt("x", tokens=(1,))),
    "a negative token": ("prompt", lambda: Prompt(tokens=(-1,))),
    "too long a prompt": ("messages", lambda: Prompt("x" * (limits.MAX_PROMPT_BYTES + 1))),
    "too many tokens": ("messages", lambda: Prompt(tokens=(1,) * (limits.MAX_PROMPT_BYTES // 4 + 1))),
    "half a character": ("messages", lambda: Prompt("\ud800")),
    "a bias beyond 100": ("logit_bias", lambda: Bias(1, 100.5)),
    "one token biased twice": ("logit_bias", lambda: Sampling(biases=(Bias(1, 1.0), Bias(1, 2.0)))),
    "too many biases": ("logit_bias", lambda: Sampling(biases=tuple(Bias(i, 1.0) for i in range(1025)))),
    "too many alternatives": ("top_logprobs", lambda: Generation(PROMPT, top_logprobs=21)),
    "a schema without its kind": ("response_format", lambda: Format(FormatKind.JSON_OBJECT, "{}")),
    "a kind without its schema": ("response_format", lambda: Format(FormatKind.JSON_SCHEMA)),
    "a huge schema": ("response_format", lambda: Format(FormatKind.JSON_SCHEMA, "x" * 65_537)),
    "a function with a strange name": ("tools", lambda: Tool("what is this?")),
    "two tools of one name": ("tools", lambda: Generation(PROMPT, tools=(WEATHER, WEATHER))),
    "too many tools": ("tools", lambda: Generation(PROMPT, tools=tuple(Tool(f"t{i}") for i in range(129)))),
    "a call required of no tool": (
        "tool_choice",
        lambda: Generation(PROMPT, tool_choice=ToolChoice(ToolMode.REQUIRED)),
    ),
    "a call of another tool": (
        "tool_choice",
        lambda: Generation(PROMPT, tools=(WEATHER,), tool_choice=ToolChoice(ToolMode.REQUIRED, "time")),
    ),
    "tools and a format": (
        "response_format",
        lambda: Generation(PROMPT, tools=(WEATHER,), format=Format(FormatKind.JSON_OBJECT)),
    ),
    "a user's call": ("messages", lambda: Message("user", "", (ToolCall("1", "weather", "{}"),))),
    "no inputs": ("input", lambda: Embedding(())),
    "more inputs than a prompt's text": (
        "input",
        lambda: Embedding((Prompt("x" * limits.MAX_PROMPT_BYTES), Prompt("x"))),
    ),
    "work of another kind": ("kind", lambda: Job(job_id(bytes(16)), TaskKind.EMBED, "m", Generation(PROMPT))),
    "two kinds of work": (
        "kind",
        lambda: Job(job_id(bytes(16)), TaskKind.GENERATE, "m", Generation(PROMPT), tokenization=Tokenization(PROMPT)),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_fields_name(name: str) -> None:
    param, make = REFUSED[name]
    with pytest.raises(BadInput) as caught:
        make()
    assert caught.value.param == param


def test_a_format_may_stand_beside_tools_that_must_not_be_called() -> None:
    forbidden = ToolChoice(ToolMode.NONE)
    Generation(PROMPT, tools=(WEATHER,), tool_choice=forbidden, format=Format(FormatKind.JSON_OBJECT))


def test_a_cache_never_holds_more_than_the_prompt() -> None:
    Opening(5, cached_tokens=5)
    with pytest.raises(BadInput):
        Opening(5, cached_tokens=6)


def test_a_job_knows_its_work() -> None:
    embedding, generation = Embedding((PROMPT,)), Generation(PROMPT)
    assert Job(job_id(bytes(16)), TaskKind.EMBED, "m", embedding=embedding).work is embedding
    assert Job(job_id(bytes(16)), TaskKind.GENERATE, "m", generation).work is generation
    assert Job(job_id(bytes(16)), TaskKind.NOOP, "").work is None
