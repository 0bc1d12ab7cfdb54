"""The one door that strangers may knock at: a TCP listener that answers a single bounded enrolment request.

It is not libp2p: an outsider gets no handshake, no muxer, no protocol negotiation; just one length-prefixed
request (at most MAX_ENROL_BYTES) and one answer, sealed by the floors above. Knocks are limited per address and in
total, and each has a few seconds.
"""

from __future__ import annotations

import logging
import struct
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from meshd.core import limits
from meshd.core.errors import FrameTooLarge, InviteInvalid, MeshError, PortInUse, Truncated, Unreachable

log = logging.getLogger("meshd.enrol")

KNOCK_TIMEOUT_S = 5.0
MAX_CONCURRENT = 8
"""Each takes one signature and one box: a fraction of a millisecond of work, a few KiB of memory."""

BURST = 10
REFILL_PER_S = 0.5
"""Per address: ten knocks at once, then one every two seconds. A secret has 256 bits; this only bounds work."""

TOTAL_BURST = 100
TOTAL_REFILL_PER_S = 20.0
MAX_ADDRESSES = 4096

Answer = Callable[[bytes], Awaitable[bytes]]
"""Turns a request's bytes into an answer's; raises MeshError to hang up without one."""


class Buckets:
    """Token buckets by key, bounded in number; time is an argument (s)."""

    def __init__(self, burst: float, refill_per_s: float, max_keys: int) -> None:
        self._burst = burst
        self._refill_per_s = refill_per_s
        self._max_keys = max_keys
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now_s: float) -> bool:
        """Whether one more is allowed for ``key`` now."""
        level, since_s = self._levels.pop(key, (self._burst, now_s))
        level = min(self._burst, level + (now_s - since_s) * self._refill_per_s)
        allowed = level >= 1
        self._levels[key] = (level - 1 if allowed else level, now_s)
        if len(self._levels) > self._max_keys:
            self._levels.popitem(last=False)
        return allowed


class EnrolmentListener:
    """Listens for knocks and passes each request to ``answer``."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._slots = trio.Semaphore(MAX_CONCURRENT)
        self._per_address = Buckets(BURST, REFILL_PER_S, MAX_ADDRESSES)
        self._total = Buckets(TOTAL_BURST, TOTAL_REFILL_PER_S, 1)
        self.port = 0

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[None]:
        """Listen while in the context. Raises PortInUse."""
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as e:
            raise PortInUse(
                f"cannot listen for enrolment on {host}:{port}: {e.strerror or e}",
                hint="set network.enrol_listen to another host:port",
            ) from e
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._knock, listeners)
            yield
            nursery.cancel_scope.cancel()

    async def _knock(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                address = str(stream.socket.getpeername()[0])
                now_s = trio.current_time()
                if not (self._per_address.take(address, now_s) and self._total.take("", now_s)):
                    log.warning("enrolment: too many knocks, hung up on %s", address)
                    return
                self._slots.acquire_nowait()
            except (OSError, trio.WouldBlock):
                return
            try:
                with trio.move_on_after(KNOCK_TIMEOUT_S):
                    await _write(stream, await self._answer(await _read(stream)))
            except MeshError as e:
                log.warning("enrolment: refused %s: %s", address, e.message)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                log.info("enrolment: %s hung up", address)
            finally:
                self._slots.release()


async def knock(addresses: tuple[str, ...], request: bytes) -> bytes:
    """The answer of the first of ``addresses`` (host:port) that gives one.

    Raises Unreachable when none can be reached, InviteInvalid when those reached hung up without an answer.
    """
    reached = False
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            with trio.fail_after(KNOCK_TIMEOUT_S):
                async with await trio.open_tcp_stream(host.strip("[]"), int(port)) as stream:
                    reached = True
                    await _write(stream, request)
                    return await _read(stream)
        except (OSError, ValueError, trio.TooSlowError, trio.BrokenResourceError, Truncated, FrameTooLarge) as e:
            log.info("enrolment: no answer from %s: %s", address, e)
    if reached:
        raise InviteInvalid(
            "the issuer hung up without an answer", hint="ask for a new invite, or wait a minute and try again"
        )
    raise Unreachable(
        f"no issuer answers at {', '.join(addresses) or 'any address'}",
        hint="is the issuing machine on and its daemon running (mesh up)?",
    )


async def _read(stream: trio.SocketStream) -> bytes:
    (size,) = struct.unpack("!I", await _exactly(stream, 4))
    if size > limits.MAX_ENROL_BYTES:
        raise FrameTooLarge(f"an enrolment message of {size} bytes")
    return await _exactly(stream, size)


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        if not chunk:
            raise Truncated("the connection ended in the middle of an enrolment message")
        data += chunk
    return bytes(data)


async def _write(stream: trio.SocketStream, message: bytes) -> None:
    await stream.send_all(struct.pack("!I", len(message)) + message)
