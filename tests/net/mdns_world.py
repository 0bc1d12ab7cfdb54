"""Two members of one organisation and one of another on one LAN: the loopback of a network namespace of our own.
Run: unshare -n python -m tests.net.mdns_world. Prints who heard of whom."""

from __future__ import annotations

import fcntl
import socket
import struct

import trio

from meshd.core.ids import NodeId
from meshd.net.mdns import Hint, local_discovery
from tests.net.members import id_of, member

SIOCSIFFLAGS = 0x8914
UP_LOOPBACK_RUNNING_MULTICAST = 0x1 | 0x8 | 0x40 | 0x1000
LOOPBACK = ("127.0.0.1",)
OURS, THEIRS = bytes(32), bytes([1] * 32)


def bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", UP_LOOPBACK_RUNNING_MULTICAST))


async def main() -> None:
    """Members 1 and 2 announce their real ports; member 3 is of another organisation."""
    async with (
        member(1) as a,
        member(2) as b,
        local_discovery(OURS, id_of(1), a.transport.addresses(), LOOPBACK) as hints_of_a,
        local_discovery(THEIRS, id_of(3), ("/ip4/127.0.0.1/tcp/9",), LOOPBACK) as hints_of_stranger,
        local_discovery(OURS, id_of(2), b.transport.addresses(), LOOPBACK) as hints_of_b,
    ):
        with trio.fail_after(30):
            found_by_a, found_by_b = await anext(hints_of_a), await anext(hints_of_b)
        assert found_by_a == Hint(id_of(2), b.transport.addresses())
        assert found_by_b == Hint(id_of(1), a.transport.addresses())
        with trio.fail_after(5):
            await a.transport.dial(NodeId(found_by_a.node), found_by_a.addresses, 5)
        with trio.move_on_after(0.5) as scope:
            raise AssertionError(f"the stranger heard of {await anext(hints_of_stranger)}")
        assert scope.cancelled_caught
    print("heard of each other")


if __name__ == "__main__":
    bring_loopback_up()
    trio.run(main)
