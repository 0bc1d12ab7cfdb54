"""The interfaces the node consumes: network, directory, engine, probe, clock. Implemented in floor 3, faked in
`meshd.testing`, both held to the same conformance suites.

Every port raises only errors of `meshd.core.errors`; a library's own errors are translated at its door.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from meshd.core.engine import (
    EngineEvent,
    EngineFinished,
    EngineLimits,
    EngineModel,
    EngineStarted,
    EngineStatus,
    EngineTokens,
    MachineInfo,
    ModelFile,
)
from meshd.core.generation import Token
from meshd.core.ids import ModelDigest, NodeId
from meshd.core.job import Work
from meshd.core.peers import PeerDown as PeerDown
from meshd.core.peers import PeerUp as PeerUp
from meshd.core.trust import Certificate
from meshd.core.upstream import Learnt, Upstream, UpstreamStatus

__all__ = [
    "Directory",
    "Engine",
    "EngineEvent",
    "EngineFinished",
    "EngineLimits",
    "EngineModel",
    "EngineStarted",
    "EngineTokens",
    "FrameStream",
    "MachineInfo",
    "ModelFile",
    "PeerDown",
    "PeerUp",
    "Probe",
    "StreamHandler",
    "Transport",
    "Upstreams",
]


class FrameStream(Protocol):
    """An ordered, authenticated stream of frames with one peer. One task may send while another receives."""

    @property
    def peer(self) -> NodeId: ...

    async def send(self, kind: int, payload: bytes) -> None:
        """Send one frame whole. Atomic against cancellation: either nothing or everything is written, and a
        write stuck beyond its deadline costs the connection. Raises Truncated when the peer is gone."""

    async def receive(self, max_bytes: int) -> tuple[int, bytes]:
        """The next frame. Raises Truncated when the peer vanished or reset, FrameTooLarge before reading a
        frame beyond ``max_bytes``. Cancellable at no cost: a partly received frame is kept for the next call."""

    async def close(self) -> None:
        """Say that nothing more will be sent. Idempotent, never raises."""

    async def abort(self) -> None:
        """Reset the stream at once, both directions. Idempotent, never raises."""


StreamHandler = Callable[[FrameStream], Awaitable[None]]


class Transport(Protocol):
    """Authenticated connections between members. Strangers never get this far."""

    @property
    def node(self) -> NodeId: ...

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs this node listens on, without the peer id, wildcard hosts expanded."""

    def certificate_of(self, node: NodeId) -> Certificate | None:
        """The certificate that the connected peer proved; None when not connected."""

    def connected(self) -> tuple[NodeId, ...]: ...

    async def dial(self, node: NodeId | None, addresses: Sequence[str], timeout_s: float) -> NodeId:
        """Connect (or keep the live connection) and answer who is there. ``node`` None: learn it from a ``/p2p/``
        part of the address, or take whoever proves membership. Raises Unreachable, NotMember, ClockWrong."""

    async def open_stream(self, node: NodeId, protocol: str, timeout_s: float) -> FrameStream:
        """A new stream to a connected peer. Raises Unreachable."""

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Run ``handler`` for each inbound stream of ``protocol``. What the handler raises ends that stream only."""

    async def drop(self, node: NodeId) -> None:
        """Abort every connection to ``node`` now, frozen peers included. Never raises."""

    def events(self) -> AsyncIterator[PeerUp | PeerDown]:
        """Peers coming and going, from now on; bounded, one consumer."""


class Directory(Protocol):
    """The DHT as a background directory of ads. Never on a request's path."""

    async def publish(self, ad: bytes) -> None:
        """Put this node's signed ad under its own key. Best effort; raises Unreachable when nobody took it."""

    async def lookup(self, node: NodeId) -> bytes | None:
        """The newest unexpired ad of ``node`` in the network, never a stale local copy; None when there is none."""

    def known(self) -> tuple[NodeId, ...]:
        """Members in this node's routing table."""

    def addresses_of(self, node: NodeId) -> tuple[str, ...]: ...

    async def refresh(self) -> None:
        """Walk the DHT once so that ``known`` learns of nodes met by others."""


class Engine(Protocol):
    """Local inference. A crash inside costs the attempt (EngineFailed), never the daemon."""

    def loaded(self) -> tuple[EngineModel, ...]: ...

    def slots_free(self, digest: ModelDigest) -> int: ...

    def status(self) -> tuple[EngineStatus, ...]:
        """Every engine process, for people who look after the machine."""

    async def load(
        self, model: ModelFile, limits: EngineLimits, progress: Callable[[float], None] | None = None
    ) -> EngineModel:
        """Load (or keep) the model; ``progress`` hears how much of it is there (0 to 1), now and then. Raises
        ModelInvalid, BeyondLimits, EngineFailed. Cancelled, it leaves nothing behind that nobody else waits for."""

    async def unload(self, digest: ModelDigest) -> None:
        """End the model's engine. From the call on it does not count as loaded."""

    async def limit(self, limits: EngineLimits) -> None:
        """Put new limits on every running engine, now and while requests run."""

    def generate(
        self, digest: ModelDigest, work: Work, delivered: Sequence[Token], owner: str
    ) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """Do one piece of work, going on after ``delivered``. What is kept of it serves only the same ``owner``.
        Leaving the context frees the sequence within one decode step. Raises BadInput, ContextOverflow, Overloaded (no
        slot), EngineFailed."""


class Upstreams(Protocol):
    """OpenAI-compatible servers that this node stands in front of. What they offer is among the Engine's models."""

    async def learn(self, upstream: Upstream) -> Learnt:
        """Ask the server what it can do. Raises BadInput (address, key or model), Unreachable, Overloaded."""

    def open(self, upstream: Upstream, learnt: Learnt | None = None) -> UpstreamStatus:
        """Offer it from now on, while it is well; without ``learnt`` from when it was asked and answered."""

    def close(self, digest: ModelDigest) -> None:
        """Offer it no longer; what runs there ends with EngineFailed."""

    def statuses(self) -> tuple[UpstreamStatus, ...]:
        """Each of them now."""


class Probe(Protocol):
    """Looks at the machine. Cheap; no blocking beyond a few milliseconds."""

    def machine(self) -> MachineInfo: ...
