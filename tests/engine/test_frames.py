"""Messages between pool and engine process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.core.chat import Message
from meshd.core.generation import Generation, Prompt, Sampling
from meshd.engine.codec import request_from, request_map
from meshd.engine.frames import MAX_FRAME_BYTES, FrameError, Unpacker, pack


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


def test_a_request_arrives_as_it_was_sent() -> None:
    request = Generation(
        Prompt(messages=(Message("user", "hé"),)), Sampling(temperature=0.5, seed=9), 7, ("a", "b"), exact=True
    )
    (message,) = Unpacker().feed(pack(["start", request_map(request)]))
    assert request_from(message[1]) == request
    assert request_from(request_map(Generation(Prompt("t")))) == Generation(Prompt("t"))
