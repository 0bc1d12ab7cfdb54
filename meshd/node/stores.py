"""What the node keeps on disk, as it sees it. Implemented over `meshd.store` by the composition root.

Every method may wait for the disk without blocking the loop, and raises only HomeUnusable when the disk fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from meshd.core.engine import ModelFile
from meshd.core.ids import NodeId
from meshd.core.receipt import Receipt
from meshd.core.share import Share
from meshd.core.upstream import Upstream
from meshd.node.views import InviteRequest


class Ledger(Protocol):
    """Signed receipts, appended and never changed."""

    async def append(self, receipts: Sequence[tuple[Receipt, bytes]]) -> None:
        """Keep receipts, each with its signed bytes; returns once they are on disk."""


class PeerBook(Protocol):
    """Where members were last reached."""

    async def remember(self, node: NodeId, addresses: Sequence[str]) -> None: ...

    async def recall(self) -> tuple[tuple[NodeId, tuple[str, ...]], ...]:
        """Members last reached, newest first, bounded."""


class Settings(Protocol):
    """The owner's share."""

    async def load_share(self) -> Share: ...

    async def save_share(self, share: Share) -> None: ...


class ModelStore(Protocol):
    """Registered model files."""

    async def list(self) -> tuple[ModelFile, ...]: ...

    async def add(self, path: str, name: str | None) -> ModelFile:
        """Verify and register a file. Raises NotFound, ModelInvalid, AlreadyDone."""

    async def remove(self, name: str) -> ModelFile:
        """Unregister; the file stays. Raises NotFound."""

    async def version(self, file: ModelFile) -> str:
        """What is another text whenever the file was written to; empty when it is gone."""


class UpstreamStore(Protocol):
    """Servers that this node stands in front of, with their keys."""

    async def list(self) -> tuple[Upstream, ...]: ...

    async def add(self, upstream: Upstream) -> None:
        """Register it. Raises AlreadyDone: the name is taken, or the same model of the same server is there."""

    async def remove(self, name: str) -> Upstream:
        """Forget it, key and all. Raises NotFound."""


class InviteIssuer(Protocol):
    """Makes invites; None in the composition where this node holds no issuer key."""

    async def create(self, request: InviteRequest) -> str: ...
