"""What the network may cost."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.net.members import ECHO, member

ROUND_TRIP_CPU_S = 0.7e-3
"""At each side, for one small frame out and one in."""

BATCH = 300


async def test_a_small_frame_is_cheap() -> None:
    """Both sides run in this process, so a round trip costs twice the bound. The best of three batches counts, for
    other processes share the machine."""
    async with member(1) as a, member(2) as b:
        node = await a.transport.dial(None, b.transport.addresses(), 5)
        stream = await a.transport.open_stream(node, ECHO, 5)
        costs = []
        for _ in range(3):
            began = time.process_time()
            for _ in range(BATCH):
                await stream.send(1, bytes(100))
                await stream.receive(1000)
            costs.append((time.process_time() - began) / BATCH)
        assert min(costs) < 2 * ROUND_TRIP_CPU_S


def test_importing_the_network_stays_small() -> None:
    """Memory of an idle daemon: what is imported stays."""
    code = "import meshd.net.mesh_net, psutil; print(psutil.Process().memory_info().rss // 2**20)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 110
