"""What the network may cost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from meshd.net.frames import Frames
from tests.net.members import ECHO, member

TIMES_BARE = 8
"""What a small frame there and back may cost, both sides together, as a multiple of the same bytes over bare TCP. It
is 4 to 4.5: both sealings and openings, and the turns of the tasks in between."""

BATCH, BATCHES = 100, 15


async def echo_bare(socket: trio.SocketStream) -> None:
    while data := await socket.receive_some(4096):
        await socket.send_all(data)


async def bare(socket: trio.SocketStream) -> None:
    await socket.send_all(bytes(100))
    await socket.receive_some(4096)


async def framed(stream: Frames) -> None:
    await stream.send(1, bytes(100))
    await stream.receive(1000)


async def cost_s(round_trip: Callable[[], Awaitable[None]]) -> float:
    """Processor time of a batch; both sides run in this process."""
    began = time.process_time()
    for _ in range(BATCH):
        await round_trip()
    return time.process_time() - began


async def test_a_small_frame_is_cheap() -> None:
    """Measured against bare TCP in turns, and by the better of the turns, so that a slow or busy machine cannot fail it
    and two and a half times the work a frame does."""
    async with member(1) as a, member(2) as b, trio.open_nursery() as nursery:
        node = await a.transport.dial(None, b.transport.addresses(), 5)
        stream = await a.transport.open_stream(node, ECHO, 5)
        (listener,) = await nursery.start(partial(trio.serve_tcp, echo_bare, 0, host="127.0.0.1"))
        async with await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]) as socket:
            ratios = []
            for _ in range(BATCHES):
                bare_s = await cost_s(partial(bare, socket))
                ratios.append(await cost_s(partial(framed, stream)) / bare_s)
        nursery.cancel_scope.cancel()
    assert sorted(ratios)[BATCHES // 4] < TIMES_BARE, sorted(ratios)


def test_importing_the_network_stays_small() -> None:
    """Memory of an idle daemon: what is imported stays."""
    code = "import meshd.net.mesh_net, psutil; print(psutil.Process().memory_info().rss // 2**20)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 110
