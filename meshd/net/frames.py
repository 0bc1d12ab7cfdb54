"""Frames on a stream: 4 bytes length, 1 byte kind, payload. An end is something the peers say in a frame, so running
out of bytes is always a truncation here, in a frame as between frames."""

from __future__ import annotations

import logging
import struct
from typing import Final

import trio
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import MuxedStreamError

from meshd.core.errors import BadInput, FrameTooLarge, Truncated
from meshd.core.ids import NodeId
from meshd.net.mux import FIRST_WINDOW_BYTES, MAX_FRAME_BYTES, MuxStream

_HEADER: Final = struct.Struct("!IB")
FRAMES_A_TURN: Final = 32
"""Frames taken from what has come in already before everybody else has a turn: a window holds 200,000 small ones."""

MAX_PAYLOAD_BYTES: Final = 64 * 1024 * 1024
"""A sanity bound on what we send; what we take is the receiver's ``max_bytes``."""

log = logging.getLogger("meshd.net")


class Frames:
    """A `FrameStream` of the ports. One task may send while another receives."""

    def __init__(self, net_stream: NetStream, peer: NodeId) -> None:
        self._net_stream = net_stream
        self._stream: MuxStream = net_stream.muxed_stream  # type: ignore[assignment]
        self._peer = peer
        self._sending = trio.Lock()
        self._received = bytearray()
        self._taken = 0

    @property
    def peer(self) -> NodeId:
        """Who is at the other end."""
        return self._peer

    async def send(self, kind: int, payload: bytes) -> None:
        """Send one frame whole or not at all; see `FrameStream`. BadInput for a frame nobody could take."""
        if not 0 <= kind <= 255 or len(payload) > MAX_PAYLOAD_BYTES:
            raise BadInput("not a frame", param="kind")
        await trio.lowlevel.checkpoint()
        frame = _HEADER.pack(len(payload), kind) + payload
        async with self._sending:
            try:
                self._stream.check_sendable()
                if self._stream.can_push(len(frame)):
                    self._stream.push(frame)
                else:
                    await self._send_waiting(frame)
            except MuxedStreamError as error:
                raise Truncated(f"{self._peer} is gone") from error

    async def _send_waiting(self, frame: bytes) -> None:
        """Send although the peer must take some first. Shielded, so that a frame is never cut; bounded, so that a
        peer that takes nothing cannot hold us."""
        conn = self._stream.muxed_conn
        for start in range(0, len(frame), MAX_FRAME_BYTES):
            with trio.CancelScope(deadline=trio.current_time() + conn.write_deadline_s, shield=True) as scope:
                await self._stream.write(frame[start : start + MAX_FRAME_BYTES])
            if not scope.cancelled_caught:
                continue
            self._stream.abort()
            if trio.current_time() - conn.last_received_at >= conn.write_deadline_s:
                conn.abort()  # not one byte in all that time: frozen, not merely a slow reader of this stream
            raise Truncated(f"{self._peer} took nothing for {conn.write_deadline_s:g} s")

    async def receive(self, max_bytes: int) -> tuple[int, bytes]:
        """The next frame; see `FrameStream`."""
        self._taken += 1
        if self._taken % FRAMES_A_TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        await self._have(_HEADER.size)
        size, kind = _HEADER.unpack_from(self._received)
        if size > max_bytes:
            raise FrameTooLarge(f"a frame of {size} bytes where {max_bytes} are allowed")
        end = _HEADER.size + size
        if size <= FIRST_WINDOW_BYTES:
            await self._have(end)
        else:
            async with self._stream.muxed_conn.large_frames:
                await self._have(end)
        payload = bytes(self._received[_HEADER.size : end])
        del self._received[:end]
        return kind, payload

    async def _have(self, n: int) -> None:
        """Return once ``n`` bytes are at hand. What came in so far is kept when this is cancelled."""
        while len(self._received) < n:
            try:
                await self._stream.wait_readable()
            except MuxedStreamError as error:
                raise Truncated(f"{self._peer} ended the stream") from error
            self._received += self._stream.take()

    async def close(self) -> None:
        """Say that nothing more will be sent."""
        with trio.CancelScope(shield=True):
            await self._net_stream.close()

    async def abort(self) -> None:
        """Reset the stream, both directions."""
        with trio.CancelScope(shield=True):
            await self._net_stream.reset()
