"""Task streams: kept open between attempts and reused, and an in-process one for this node's own engine.

Opening a libp2p stream costs 2-4 ms and one of 256 slots of the connection; a round trip on an open one costs a
quarter of that. So a stream whose attempt ended in order carries the next offer to the same worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from meshd.core.errors import FrameTooLarge, Overloaded, Truncated
from meshd.core.ids import NodeId
from meshd.node.ports import FrameStream, Transport
from meshd.wire.protocols import TASK

MAX_IDLE_PER_PEER = 16
"""Streams kept for reuse; more are closed. As many as attempts usually run at once on one worker."""

MAX_STREAMS_PER_PEER = 128
"""Half of yamux's 256 streams per connection: control, directory and the peer's own offers need the rest."""

LOOPBACK_FRAMES = 256
"""Frames in flight inside one process; beyond it the sender waits."""


class LoopbackStream:
    """One end of an in-process frame stream; made in pairs by `loopback_pair`."""

    def __init__(
        self,
        peer: NodeId,
        out: trio.MemorySendChannel[tuple[int, bytes]],
        into: trio.MemoryReceiveChannel[tuple[int, bytes]],
    ) -> None:
        self.peer = peer
        self._out = out
        self._into = into

    async def send(self, kind: int, payload: bytes) -> None:
        """Hand one frame to the other end; raises Truncated when it is gone."""
        try:
            await self._out.send((kind, payload))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Truncated("the other end of the loopback stream is gone") from None

    async def receive(self, max_bytes: int) -> tuple[int, bytes]:
        """The next frame; raises Truncated when there will be none, FrameTooLarge beyond ``max_bytes``."""
        try:
            kind, payload = await self._into.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise Truncated("the other end of the loopback stream is gone") from None
        if len(payload) > max_bytes:
            raise FrameTooLarge(f"a frame of {len(payload)} bytes where {max_bytes} are the limit")
        return kind, payload

    async def close(self) -> None:
        """Send nothing more."""
        self._out.close()

    async def abort(self) -> None:
        """End both directions."""
        self._out.close()
        self._into.close()


def loopback_pair(node: NodeId) -> tuple[LoopbackStream, LoopbackStream]:
    """Two connected ends inside ``node``."""
    a_out, b_in = trio.open_memory_channel[tuple[int, bytes]](LOOPBACK_FRAMES)
    b_out, a_in = trio.open_memory_channel[tuple[int, bytes]](LOOPBACK_FRAMES)
    return LoopbackStream(node, a_out, a_in), LoopbackStream(node, b_out, b_in)


class TaskStreams:
    """Lends task streams to workers, this node included."""

    def __init__(self, transport: Transport, serve_local: Callable[[FrameStream], None]) -> None:
        self._transport = transport
        self._serve_local = serve_local
        self._idle: dict[NodeId, deque[FrameStream]] = {}
        self._lent: dict[NodeId, set[FrameStream]] = {}
        self._open: dict[NodeId, int] = {}

    async def acquire(self, worker: NodeId, timeout_s: float) -> FrameStream:
        """A stream to ``worker`` on which no attempt runs. Raises Unreachable, Overloaded."""
        idle = self._idle.get(worker)
        stream = idle.pop() if idle else await self._another(worker, timeout_s)
        self._lent.setdefault(worker, set()).add(stream)
        return stream

    async def _another(self, worker: NodeId, timeout_s: float) -> FrameStream:
        if self._open.get(worker, 0) >= MAX_STREAMS_PER_PEER:
            raise Overloaded("too many attempts run on that worker already", retry_after_s=1.0)
        self._open[worker] = self._open.get(worker, 0) + 1
        try:
            return await self._new(worker, timeout_s)
        except BaseException:
            self._forget_one(worker)
            raise

    async def _new(self, worker: NodeId, timeout_s: float) -> FrameStream:
        if worker != self._transport.node:
            return await self._transport.open_stream(worker, TASK, timeout_s)
        ours, theirs = loopback_pair(worker)
        self._serve_local(theirs)
        return ours

    async def release(self, worker: NodeId, stream: FrameStream) -> None:
        """Give back a stream whose attempt ended in order. One of a connection that is gone by now is not reused,
        though all that was said on it could still be read."""
        if not self._take_back(worker, stream):
            await self._end(worker, stream)
            return
        idle = self._idle.setdefault(worker, deque())
        if len(idle) < MAX_IDLE_PER_PEER:
            idle.append(stream)
            return
        self._forget_one(worker)
        await stream.close()

    async def discard(self, worker: NodeId, stream: FrameStream) -> None:
        """Give back a stream that must not carry another attempt."""
        self._take_back(worker, stream)
        await self._end(worker, stream)

    async def forget(self, worker: NodeId) -> None:
        """The worker's connection is gone: so are its idle streams, and those that are lent are not reused."""
        self._lent.pop(worker, None)
        for stream in self._idle.pop(worker, ()):
            await self._end(worker, stream)

    async def _end(self, worker: NodeId, stream: FrameStream) -> None:
        self._forget_one(worker)
        await stream.abort()

    def _take_back(self, worker: NodeId, stream: FrameStream) -> bool:
        """Whether the stream was lent on the connection that is there now."""
        lent = self._lent.get(worker, set())
        known = stream in lent
        lent.discard(stream)
        if not lent:
            self._lent.pop(worker, None)
        return known

    def _forget_one(self, worker: NodeId) -> None:
        left = self._open.get(worker, 0) - 1
        if left > 0:
            self._open[worker] = left
        else:
            self._open.pop(worker, None)
