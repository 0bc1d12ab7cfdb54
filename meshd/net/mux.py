"""Many streams over one session, in yamux's wire format.

Why not the library's yamux: any cancellation inside its writes desynchronises Noise and leaves a dead connection
listed; a lost peer reads as a clean end; received but unread bytes are thrown away on close; a full window kills the
stream after five fixed seconds; the 257th stream waits for ever; closing towards a frozen peer hangs. All of these
follow from awaiting in the middle of a state change. Here no state change awaits: whoever sends appends whole frames
to one buffer, and one writer task seals and sends it. So cancelling a caller can never reach the connection.

Theory of operation. `Mux.start` runs the reader and the writer until the connection ends; `abort` ends it, at once
and without awaiting, from anywhere. A stream is dropped from `streams` when both directions are over. What a stream
received before the end stays readable; after it `read` raises a reset unless the peer had closed in order.
It may go when the library's yamux passes ``tests/net``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from multiaddr import Multiaddr

from meshd.net.bounds import HIGH_WATER_BYTES, LARGE_FRAMES, MAX_GROWTH_BYTES, MAX_QUEUED_BYTES
from meshd.net.session import MAX_PLAIN_BYTES, Session

HEADER: Final = struct.Struct("!BBHII")
DATA, WINDOW, PING, GO_AWAY = 0, 1, 2, 3
SYN, ACK, FIN, RST = 1, 2, 4, 8

MAX_STREAMS: Final = 256
"""Open streams of one connection in each direction."""

FIRST_WINDOW_BYTES: Final = 256 * 1024
MAX_WINDOW_BYTES: Final = 4 * 1024 * 1024
"""What a peer may send on a stream before it is read: yamux's start, doubled while the reader keeps up."""

MAX_FRAME_BYTES: Final = 64 * 1024


class MuxStream(IMuxedStream):
    """One stream. `take` and `push` are the cheap, non-awaiting ways in and out; the rest serves the library."""

    muxed_conn: Mux

    def __init__(self, stream_id: int, conn: Mux, ours: bool) -> None:
        self.stream_id = stream_id
        self.muxed_conn = conn
        self._ours = ours
        self._received = bytearray()
        self._unacknowledged = 0
        self.receive_window = FIRST_WINDOW_BYTES
        self._target_window = FIRST_WINDOW_BYTES
        self._grown_bytes = 0
        self.send_window = FIRST_WINDOW_BYTES
        self.send_over = False
        self.receive_over = False
        self.was_reset = False
        self.patience_s: float | None = None
        """How long `read` and `write` wait for the peer before the stream counts as reset; None: for ever."""
        self._slot_held = ours
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()

    # Receiving

    def take(self) -> bytearray:
        """All bytes received and not yet read (maybe none); makes room for as many at the peer."""
        received, self._received = self._received, bytearray()
        self._credit(len(received))
        return received

    def _credit(self, n: int) -> None:
        self._unacknowledged += n
        if self._unacknowledged * 2 < self._target_window or self.receive_over or self.was_reset:
            return
        grown = self.muxed_conn.grow(min(self._target_window * 2, MAX_WINDOW_BYTES) - self._target_window)
        self._grown_bytes += grown
        increment = self._unacknowledged + grown
        self._target_window += grown
        self._unacknowledged = 0
        self.receive_window += increment
        self.muxed_conn.push(HEADER.pack(0, WINDOW, 0, self.stream_id, increment))

    async def wait_readable(self) -> None:
        """Return when there are bytes. Raises MuxedStreamEOF or MuxedStreamReset when none will come."""
        while not self._received:
            if self.was_reset:
                raise MuxedStreamReset("stream reset or connection lost")
            if self.receive_over:
                raise MuxedStreamEOF("the peer closed the stream")
            await self._readers.park()

    async def read(self, n: int | None = None) -> bytes:
        """Up to ``n`` bytes, at least one. Cancellable at no cost. Raises MuxedStreamReset for more than a window: the
        library asks for all that a peer announces, at once."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if n is not None and n > MAX_WINDOW_BYTES:
            raise MuxedStreamReset(f"a message of {n} bytes")
        with trio.move_on_after(math.inf if self.patience_s is None else self.patience_s) as scope:
            await self.wait_readable()
        if scope.cancelled_caught:
            raise MuxedStreamReset("the peer took too long")
        if n is None or n < 0 or n >= len(self._received):
            return bytes(self.take())
        taken = bytes(self._received[:n])
        del self._received[:n]
        self._credit(n)
        return taken

    # Sending

    def check_sendable(self) -> None:
        """Raise MuxedStreamReset or MuxedStreamClosed when nothing can be sent any more."""
        if self.was_reset:
            raise MuxedStreamReset("stream reset or connection lost")
        if self.send_over:
            raise MuxedStreamClosed("closed for sending")

    def can_push(self, n: int) -> bool:
        """Whether ``n`` bytes may be sent now without waiting."""
        return n <= self.send_window and n <= MAX_FRAME_BYTES and self.muxed_conn.queued_bytes < HIGH_WATER_BYTES

    def push(self, data: bytes | memoryview) -> None:
        """Send ``data``, for which `can_push` said yes."""
        self.send_window -= len(data)
        self.muxed_conn.push(HEADER.pack(0, DATA, 0, self.stream_id, len(data)), data)

    async def write(self, data: bytes) -> None:
        """Send all of ``data``, waiting for the peer's window. Cancelled, it may have sent a part."""
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(math.inf if self.patience_s is None else self.patience_s) as scope:
            await self._write_all(memoryview(data))
        if scope.cancelled_caught:
            raise MuxedStreamReset("the peer took too long")

    async def _write_all(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            self.check_sendable()
            size = min(len(view) - at, self.send_window, MAX_FRAME_BYTES)
            if size == 0:
                await self._writers.park()
            elif self.muxed_conn.queued_bytes >= HIGH_WATER_BYTES:
                await self.muxed_conn.wait_drained()
            else:
                self.push(view[at : at + size])
                at += size

    # Ending

    async def close(self) -> None:
        """Say that nothing more will be sent; what the peer still sends stays readable."""
        self.close_sending()

    def close_sending(self) -> None:
        """`close` without awaiting. Idempotent."""
        if not self.send_over:
            self.send_over = True
            self.muxed_conn.push(HEADER.pack(0, WINDOW, FIN, self.stream_id, 0))
        self._settle()

    async def reset(self) -> None:
        """End both directions at once."""
        self.abort()

    def abort(self) -> None:
        """`reset` without awaiting. Idempotent."""
        if self.was_reset:
            return  # by the peer, or with the connection: what came before may still be read
        if not (self.send_over and self.receive_over):
            self.muxed_conn.push(HEADER.pack(0, WINDOW, RST, self.stream_id, 0))
        self._received.clear()
        self.on_lost()

    def on_lost(self) -> None:
        """The peer reset the stream, or the connection is gone. What was received stays readable."""
        self.was_reset = self.send_over = True
        self._wake()
        self._settle()

    def _settle(self) -> None:
        if self._slot_held and self.send_over:
            self._slot_held = False
            self.muxed_conn.slots.release()
        if self.was_reset or (self.send_over and self.receive_over):
            listed = self.muxed_conn.streams.pop(self.stream_id, None)
            if listed is not None and not self._ours:
                self.muxed_conn.theirs -= 1
            grown, self._grown_bytes = self._grown_bytes, 0
            self.muxed_conn.growth_left_bytes += grown

    def _wake(self) -> None:
        self._readers.unpark_all()
        self._writers.unpark_all()

    # What the reader of the connection reports

    def on_data(self, data: bytes | bytearray) -> None:
        """Bytes arrived. The caller has checked the window."""
        self.receive_window -= len(data)
        self._received += data
        self._readers.unpark_all()

    def on_window(self, increment: int) -> None:
        """The peer has read: it takes more."""
        self.send_window = min(self.send_window + increment, 1 << 31)
        self._writers.unpark_all()

    def on_end(self) -> None:
        """The peer will send no more."""
        self.receive_over = True
        self._wake()
        self._settle()

    # What the library's interface asks for besides

    def set_deadline(self, ttl: int) -> None:
        """Not supported: callers bound their waits themselves."""

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port of the other end."""
        return self.muxed_conn.get_remote_address()

    async def __aenter__(self) -> MuxStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close_sending()


class Mux(IMuxedConn):
    """The streams of one connection."""

    def __init__(self, session: Session, peer_id: ID, write_deadline_s: float) -> None:
        self.secured_conn = session
        self.peer_id = peer_id
        self.write_deadline_s = write_deadline_s
        self.streams: dict[int, MuxStream] = {}
        self.theirs = 0
        """Streams in `streams` that the peer opened."""
        self.slots = trio.Semaphore(MAX_STREAMS)
        self.large_frames = trio.Semaphore(LARGE_FRAMES)
        self.growth_left_bytes = MAX_GROWTH_BYTES
        self.last_received_at = trio.current_time()
        self.on_close: Callable[[], Awaitable[Any]] | None = None
        self.on_over: Callable[[], None] = lambda: None
        """Called once, without awaiting, when the connection ends."""
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self._next_id = 1 if session.is_initiator else 2
        self._accepted, self._to_accept = trio.open_memory_channel[MuxStream](MAX_STREAMS)
        self._queue: list[bytes | memoryview] = []
        self.queued_bytes = 0
        self._writer = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()

    # The connection

    async def start(self) -> None:
        """Run the connection until it ends. Never raises on its account."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_loop)
                self.event_started.set()
                await self._read_loop()
                nursery.cancel_scope.cancel()
        finally:
            self.abort()

    async def close(self) -> None:
        """Say good-bye, give what is queued a moment to leave, and end."""
        if not self.is_closed:
            self.push(HEADER.pack(0, GO_AWAY, 0, 0, 0))
            with trio.CancelScope(deadline=trio.current_time() + 0.1, shield=True):
                while self.queued_bytes and not self.is_closed:
                    await self.wait_drained()
        self.abort()

    def abort(self) -> None:
        """End the connection now: close the socket, wake every waiter. Idempotent, never waits."""
        if self.is_closed:
            return
        self.event_closed.set()
        self.secured_conn.abort()
        self._queue.clear()
        self.queued_bytes = 0
        for stream in list(self.streams.values()):
            stream.on_lost()
        self._accepted.close()
        self.on_over()
        self._writer.unpark_all()
        self._drained.unpark_all()

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over."""
        return self.event_closed.is_set()

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self.is_closed

    @property
    def is_idle(self) -> bool:
        """Whether no stream is open but the impatient ones of the directory."""
        return all(stream.patience_s is not None for stream in self.streams.values())

    @property
    def is_initiator(self) -> bool:
        """Whether we opened the connection."""
        return self.secured_conn.is_initiator

    def get_transport_addresses(self) -> list[Multiaddr]:
        """The other end as a multiaddr."""
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        """Always direct."""
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port of the other end."""
        return self.secured_conn.get_remote_address()

    # Sending

    def push(self, *parts: bytes | memoryview) -> None:
        """Queue a frame for the writer. Not awaiting, so a frame is queued whole or not at all."""
        if self.is_closed:
            return
        for part in parts:
            self._queue.append(part)
            self.queued_bytes += len(part)
        if self.queued_bytes > MAX_QUEUED_BYTES:
            self.abort()
        self._writer.unpark()

    async def wait_drained(self) -> None:
        """Wait until the queue has left for the socket, or the connection is over."""
        await self._drained.park()

    async def _write_loop(self) -> None:
        while not self.is_closed:
            if not self._queue:
                self._drained.unpark_all()
                await self._writer.park()
                continue
            plain = b"".join(self._queue)
            self._queue.clear()
            if not await self._send(plain):
                self.abort()

    async def _send(self, plain: bytes) -> bool:
        for start in range(0, len(plain), MAX_PLAIN_BYTES):
            piece = plain[start : start + MAX_PLAIN_BYTES]
            try:
                with trio.move_on_after(self.write_deadline_s) as scope:
                    await self.secured_conn.send_sealed(self.secured_conn.seal(piece))
            except IOException:
                return False
            if scope.cancelled_caught:
                return False
            self.queued_bytes = max(0, self.queued_bytes - len(piece))
        return True

    # Opening and accepting

    async def open_stream(self) -> MuxStream:
        """A new stream; waits while `MAX_STREAMS` are open. Cancelled, it has taken nothing."""
        await self.slots.acquire()
        return self.open_in_slot()

    def open_in_slot(self) -> MuxStream:
        """A new stream in a slot that the caller acquired. Not awaiting. Raises MuxedStreamError, the slot given
        back, when the connection is over."""
        if self.is_closed:
            self.slots.release()
            raise MuxedStreamError("connection closed")
        stream = MuxStream(self._next_id, self, ours=True)
        self._next_id += 2
        self.streams[stream.stream_id] = stream
        self.push(HEADER.pack(0, WINDOW, SYN, stream.stream_id, 0))
        return stream

    async def accept_stream(self) -> MuxStream:
        """The next stream the peer opened. Raises MuxedConnUnavailable when the connection is over."""
        try:
            return await self._to_accept.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable("connection closed") from None

    # Receiving

    def grow(self, wanted_bytes: int) -> int:
        """``wanted_bytes`` when the windows of this connection may grow so much more in all, else 0."""
        granted = wanted_bytes if wanted_bytes <= self.growth_left_bytes else 0
        self.growth_left_bytes -= granted
        return granted

    async def _read_loop(self) -> None:
        pending = bytearray()
        while not self.is_closed:
            try:
                data = await self.secured_conn.receive()
                self.last_received_at = trio.current_time()
                pending += data
                if not data or not self._consume(pending):
                    return
            except Exception:  # noqa: BLE001 - the door: whatever a peer sends may end its connection, never the host
                return

    def _consume(self, pending: bytearray) -> bool:
        """Act on every whole frame in ``pending`` and remove it; False when the connection must end."""
        at = 0
        while len(pending) - at >= HEADER.size:
            version, kind, flags, stream_id, length = HEADER.unpack_from(pending, at)
            if version != 0 or kind > GO_AWAY:
                return False
            if kind != DATA:
                at += HEADER.size
                if not self._on_control(kind, flags, stream_id, length):
                    return False
                continue
            end = at + HEADER.size + length
            if not self._may_send(stream_id, flags, length):
                return False
            if len(pending) < end:
                break
            self._on_data(flags, stream_id, pending[at + HEADER.size : end])
            at = end
        del pending[:at]
        return True

    def _may_send(self, stream_id: int, flags: int, length: int) -> bool:
        """Whether a data frame of that length keeps to the stream's window: checked before its body is awaited."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            return length <= stream.receive_window
        return length <= (FIRST_WINDOW_BYTES if flags & SYN else MAX_WINDOW_BYTES)

    def _on_data(self, flags: int, stream_id: int, body: bytearray) -> None:
        stream = self._stream(flags, stream_id)
        if stream is None:
            return
        if body:
            stream.on_data(body)
        self._on_flags(flags, stream)

    def _on_control(self, kind: int, flags: int, stream_id: int, length: int) -> bool:
        if kind == GO_AWAY:
            return False
        if kind == PING:
            if flags & SYN:
                self.push(HEADER.pack(0, PING, ACK, 0, length))
            return True
        stream = self._stream(flags, stream_id)
        if stream is not None:
            stream.on_window(length)
            self._on_flags(flags, stream)
        return True

    def _on_flags(self, flags: int, stream: MuxStream) -> None:
        if flags & RST:
            stream.on_lost()
        elif flags & FIN:
            stream.on_end()

    def _stream(self, flags: int, stream_id: int) -> MuxStream | None:
        """The stream a frame belongs to, opened if the frame asks so; None for one that is over or not welcome."""
        if not flags & SYN:
            return self.streams.get(stream_id)
        from_peer = stream_id % 2 == (0 if self.is_initiator else 1)
        if not from_peer or stream_id == 0 or stream_id in self.streams or self.theirs >= MAX_STREAMS:
            self.push(HEADER.pack(0, WINDOW, RST, stream_id, 0))
            return None
        stream = MuxStream(stream_id, self, ours=False)
        try:
            self._accepted.send_nowait(stream)
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            self.push(HEADER.pack(0, WINDOW, RST, stream_id, 0))
            return None
        self.streams[stream_id] = stream
        self.theirs += 1
        self.push(HEADER.pack(0, WINDOW, ACK, stream_id, 0))
        return stream
