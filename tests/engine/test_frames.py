"""Messages between pool and engine process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.core.chat import Message, Tool, ToolCall, ToolChoice, ToolMode
from meshd.core.generation import Alternative, Bias, Format, FormatKind, Generation, Prompt, Sampling, Score, Token
from meshd.core.job import Embedding, Tokenization, Work
from meshd.engine.codec import work_from, work_map
from meshd.engine.frames import MAX_FRAME_BYTES, FrameError, Unpacker, pack
from meshd.engine.scores import Drawn, scored_message, scored_tokens


@given(
    st.lists(st.lists(st.integers(0, 2**63 - 1) | st.binary(max_size=50), max_size=5), max_size=6), st.integers(1, 9)
)
def test_messages_survive_any_cutting_of_the_stream(fields: list[list[object]], size: int) -> None:
    messages = [["kind", *rest] for rest in fields]
    data = b"".join(pack(message) for message in messages)
    unpacker = Unpacker()
    seen = [m for i in range(0, len(data), size) for m in unpacker.feed(data[i : i + size])]
    assert seen == messages


def test_an_announced_size_beyond_the_bound_is_refused_by_its_header() -> None:
    with pytest.raises(FrameError):
        Unpacker().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(FrameError):
        pack(["x", b"0" * MAX_FRAME_BYTES])


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x01", b"\x90", b"\x91\x01", b"\x01\x02"])
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        Unpacker().feed(len(body).to_bytes(4, "big") + body)


WORKS: tuple[Work, ...] = (
    Generation(Prompt("t")),
    Generation(
        Prompt(
            messages=(
                Message("user", "hé"),
                Message("assistant", "", (ToolCall("c1", "look", '{"a": 1}'),)),
                Message("tool", "seen", call_id="c1", name="look"),
            )
        ),
        Sampling(temperature=0.5, seed=9, biases=(Bias(3, -1.5), Bias(4, 100.0))),
        7,
        ("a", "b"),
        exact=True,
        top_logprobs=2,
        tools=(Tool("look", "Look", "{}"),),
        tool_choice=ToolChoice(ToolMode.REQUIRED, "look", parallel=False),
    ),
    Generation(Prompt(tokens=(1, 2)), format=Format(FormatKind.JSON_SCHEMA, "{}")),
    Embedding((Prompt("x"), Prompt(tokens=(5,)))),
    Tokenization(Prompt("x"), special=True),
)


@pytest.mark.parametrize("work", WORKS)
def test_work_arrives_as_it_was_sent(work: Work) -> None:
    (message,) = Unpacker().feed(pack(["start", work_map(work)]))
    assert work_from(message[1]) == work


@pytest.mark.parametrize("score", [None, Score(-1.5), Score(-0.25, (Alternative(7, b"\xff", -0.1),))])
def test_a_drawn_token_arrives_with_its_score(score: Score | None) -> None:
    (message,) = Unpacker().feed(pack(scored_message(1, 40, Drawn(9, b"x", score))))
    if score is None:
        assert message == ["tokens", 1, 40, [[9, b"x"]]]
    else:
        assert message[0] == "scored" and scored_tokens(message[2], message[3]) == (Token(40, 9, b"x", score),)
