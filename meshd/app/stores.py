"""The node's stores over `meshd.store`: every call runs in a thread, for it may wait for the disk."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from meshd.core.engine import ModelFile
from meshd.core.errors import BadInput, ModelInvalid, NotFound
from meshd.core.ids import NodeId
from meshd.core.receipt import Receipt
from meshd.core.share import Share
from meshd.core.trust import InviteTerms
from meshd.core.upstream import Upstream
from meshd.engine import gguf
from meshd.node.views import InviteRequest
from meshd.store import models, peers, receipts, settings, upstreams
from meshd.store.db import Database
from meshd.store.issuer import Issuer

T = TypeVar("T")

DISK_THREADS = 4
"""SQLite takes one writer at a time; more threads would only wait for each other."""


class _Disk:
    """Runs blocking calls on the database in threads, a few at a time."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._limiter = trio.CapacityLimiter(DISK_THREADS)

    async def run(self, call: Callable[..., T], *arguments: object) -> T:
        """``call(database, *arguments)``. Not cancelled half-way: what was begun is finished."""
        return await trio.to_thread.run_sync(partial(call, self.database, *arguments), limiter=self._limiter)


class DiskLedger:
    """`Ledger` over the receipts table."""

    def __init__(self, disk: _Disk) -> None:
        self._disk = disk

    async def append(self, batch: Sequence[tuple[Receipt, bytes]]) -> None:
        """Keep receipts; returns once they are on disk."""
        await self._disk.run(receipts.append_receipts, batch)


class DiskPeers:
    """`PeerBook` over the peers table."""

    def __init__(self, disk: _Disk, wall: Callable[[], float]) -> None:
        self._disk = disk
        self._wall = wall

    async def remember(self, node: NodeId, addresses: Sequence[str]) -> None:
        """Keep where ``node`` was reached."""
        await self._disk.run(peers.remember_peer, node, addresses, self._wall())

    async def recall(self) -> tuple[tuple[NodeId, tuple[str, ...]], ...]:
        """Members last reached, newest first."""
        return await self._disk.run(peers.recall_peers)


class DiskSettings:
    """`Settings` over the settings table."""

    def __init__(self, disk: _Disk) -> None:
        self._disk = disk

    async def load_share(self) -> Share:
        """The owner's share."""
        return await self._disk.run(settings.load_share)

    async def save_share(self, share: Share) -> None:
        """Keep the owner's share."""
        await self._disk.run(settings.save_share, share)


class DiskModels:
    """`ModelStore` over the models table; files are checked before they are registered."""

    def __init__(self, disk: _Disk) -> None:
        self._disk = disk

    async def list(self) -> tuple[ModelFile, ...]:
        """Registered models by name."""
        return await self._disk.run(models.list_models)

    async def add(self, path: str, name: str | None) -> ModelFile:
        """Verify and register a file. Raises NotFound, ModelInvalid, AlreadyDone, BadInput."""
        file = await trio.to_thread.run_sync(_inspect, path, name)
        await self._disk.run(models.add_model, file)
        return file

    async def remove(self, name: str) -> ModelFile:
        """Unregister; the file stays. Raises NotFound."""
        return await self._disk.run(models.remove_model, name)

    async def version(self, file: ModelFile) -> str:
        """Size and time of the last writing; empty when it is gone."""
        return await trio.to_thread.run_sync(_version, file.path)


def _version(path: str) -> str:
    try:
        found = Path(path).stat()
    except OSError:
        return ""
    return f"{found.st_size}/{found.st_mtime_ns}/{found.st_ino}"


def _inspect(path: str, name: str | None) -> ModelFile:
    file = Path(path)
    if not file.is_absolute():
        raise BadInput("a model's path must be absolute", param="path")
    if not file.exists():
        raise NotFound(f"there is no file {path}", hint="give the path of a GGUF file")
    if not file.is_file():
        raise ModelInvalid(f"{path} is no file", hint="give the path of a GGUF file")
    info = gguf.inspect(str(file))
    chosen = name if name is not None else file.stem
    if not 1 <= len(chosen) <= 100 or not chosen.isprintable():
        raise BadInput("a model's name has 1 to 100 printable characters", param="name")
    return ModelFile(chosen, gguf.digest(str(file)), str(file), info.size_bytes)


class DiskUpstreams:
    """`UpstreamStore` over the upstreams table."""

    def __init__(self, disk: _Disk) -> None:
        self._disk = disk

    async def list(self) -> tuple[Upstream, ...]:
        """Registered upstreams by name."""
        return await self._disk.run(upstreams.list_upstreams)

    async def add(self, upstream: Upstream) -> None:
        """Register. Raises AlreadyDone."""
        await self._disk.run(upstreams.add_upstream, upstream)

    async def remove(self, name: str) -> Upstream:
        """Forget. Raises NotFound."""
        return await self._disk.run(upstreams.remove_upstream, name)


class DeskInvites:
    """`InviteIssuer` over the issuer's desk; addresses are asked for when an invite is made."""

    def __init__(
        self,
        issuer: Issuer,
        enrol_addresses: Callable[[], builtins.list[str]],
        bootstrap: Callable[[], builtins.list[str]],
        wall: Callable[[], float],
    ) -> None:
        self._issuer = issuer
        self._enrol_addresses = enrol_addresses
        self._bootstrap = bootstrap
        self._wall = wall

    async def create(self, request: InviteRequest) -> str:
        """The text of a new invite. Raises BadInput when it goes beyond what the issuer may grant."""
        terms = InviteTerms(
            site=request.site,
            region=request.region,
            clearance=request.clearance,
            expires_at=self._wall() + request.valid_s,
            uses=request.uses,
            labels=request.labels,
        )
        return await trio.to_thread.run_sync(self._issuer.invite, terms, self._enrol_addresses(), self._bootstrap())


class DiskStores:
    """Everything kept on disk."""

    def __init__(self, database: Database, wall: Callable[[], float]) -> None:
        disk = _Disk(database)
        self.ledger = DiskLedger(disk)
        self.peers = DiskPeers(disk, wall)
        self.settings = DiskSettings(disk)
        self.models = DiskModels(disk)
        self.upstreams = DiskUpstreams(disk)
