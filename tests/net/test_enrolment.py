"""The enrolment listener against strangers: bounded in size, time, rate; and it never dies."""

from __future__ import annotations

import os
import struct

import pytest
import trio
import trio.testing

from meshd.core import limits
from meshd.core.errors import InviteInvalid, PortInUse, ProtocolViolation, Unreachable
from meshd.net.enrolment import BURST, Buckets, EnrolmentListener, knock


async def _echo(request: bytes) -> bytes:
    if request == b"bad":
        raise ProtocolViolation("not a request")
    return b"echo " + request


async def _raw(port: int, data: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        try:
            await stream.send_all(data)
            await stream.send_eof()
            return b"".join([chunk async for chunk in stream])
        except trio.BrokenResourceError:
            return b""


async def test_answers_one_request() -> None:
    listener = EnrolmentListener(_echo)
    async with listener.listening("127.0.0.1", 0):
        assert await knock((f"127.0.0.1:{listener.port}",), b"hello") == b"echo hello"


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x00",
        struct.pack("!I", limits.MAX_ENROL_BYTES + 1) + b"x",
        struct.pack("!I", 100) + b"short",
        struct.pack("!I", 3) + b"bad",
        os.urandom(4096),
    ],
)
async def test_garbage_gets_no_answer_and_the_listener_lives(garbage: bytes) -> None:
    listener = EnrolmentListener(_echo)
    async with listener.listening("127.0.0.1", 0):
        assert await _raw(listener.port, garbage) == b""
        assert await knock((f"127.0.0.1:{listener.port}",), b"still") == b"echo still"


async def test_knocks_of_one_address_are_limited() -> None:
    listener = EnrolmentListener(_echo)
    async with listener.listening("127.0.0.1", 0):
        address = (f"127.0.0.1:{listener.port}",)
        answers = 0
        with pytest.raises(InviteInvalid):
            for _ in range(BURST + 5):
                await knock(address, b"x")
                answers += 1
        assert BURST <= answers < BURST + 5


async def test_a_silent_stranger_is_hung_up_on_and_frees_its_slot() -> None:
    listener = EnrolmentListener(_echo)
    async with listener.listening("127.0.0.1", 0), await trio.open_tcp_stream("127.0.0.1", listener.port) as silent:
        assert await knock((f"127.0.0.1:{listener.port}",), b"x") == b"echo x"
        with trio.fail_after(20):
            assert await silent.receive_some(1) == b""


async def test_a_taken_port_is_a_typed_error() -> None:
    one, two = EnrolmentListener(_echo), EnrolmentListener(_echo)
    async with one.listening("127.0.0.1", 0):
        with pytest.raises(PortInUse) as e:
            async with two.listening("127.0.0.1", one.port):
                pass
        assert "enrol_listen" in e.value.hint


async def test_nobody_there_is_unreachable() -> None:
    with pytest.raises(Unreachable):
        await knock(("127.0.0.1:1",), b"x")


def test_buckets_refill_with_time_and_stay_bounded() -> None:
    buckets = Buckets(burst=2, refill_per_s=1, max_keys=2)
    assert [buckets.take("a", 0) for _ in range(3)] == [True, True, False]
    assert not buckets.take("a", 0.5)
    assert buckets.take("a", 1.1)
    for key in "bcd":
        buckets.take(key, 2)
    assert len(buckets._levels) == 2
