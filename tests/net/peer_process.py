"""A member in a process of its own, for tests that kill or freeze it. Run: python -m tests.net.peer_process NUMBER."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from meshd.core.ids import NodeId
from meshd.net.frames import Frames
from tests.net.members import id_of, member

FLOOD, SILENT = "/meshd/test/flood", "/meshd/test/silent"


class PeerProcess:
    """The running process: where it is, and how to hurt it."""

    def __init__(self, number: int, process: trio.Process, address: str) -> None:
        self.node: NodeId = id_of(number)
        self.address = address
        self.port = int(address.rsplit("/", 1)[1])
        self._process = process

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def ended(self) -> None:
        """Wait until it is gone."""
        await self._process.wait()


@asynccontextmanager
async def peer_process(number: int, port: int = 0) -> AsyncIterator[PeerProcess]:
    """Member ``number`` in its own process; killed on the way out."""
    command = [sys.executable, "-m", "tests.net.peer_process", str(number), str(port)]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(_run, command)
        line = b""
        with trio.fail_after(60):
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some(4096)
        try:
            yield PeerProcess(number, process, line.decode().strip())
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)


async def _run(command: list[str], task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED) -> None:
    await trio.run_process(command, stdout=subprocess.PIPE, check=False, task_status=task_status)


async def flood(stream: Frames) -> None:
    """Send frames as fast as they are taken."""
    while True:
        await stream.send(1, bytes(1000))


async def silent(stream: Frames) -> None:
    """Take nothing, say nothing."""
    await trio.sleep_forever()


async def main(number: int, port: int) -> None:
    """Serve until killed."""
    async with member(number, listen=(f"/ip4/127.0.0.1/tcp/{port}",)) as net:
        net.transport.serve(FLOOD, flood)
        net.transport.serve(SILENT, silent)
        os.write(1, f"{net.transport.addresses()[0]}\n".encode())
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
