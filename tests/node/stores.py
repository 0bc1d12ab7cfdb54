"""What a node keeps on disk, kept in memory, with a disk that can be held up or broken."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from meshd.core.engine import ModelFile
from meshd.core.errors import AlreadyDone, HomeUnusable, NotFound
from meshd.core.ids import NodeId
from meshd.core.receipt import Receipt
from meshd.core.share import Share


class Disk:
    """Whether writing works: at once, not before `free`, or never."""

    def __init__(self) -> None:
        self._free = trio.Event()
        self._free.set()
        self.broken = False

    def hold(self) -> None:
        """Writes wait from now on."""
        self._free = trio.Event()

    def free(self) -> None:
        """What waits is written."""
        self._free.set()

    async def write(self) -> None:
        """Return when something is written; raises HomeUnusable when the disk is broken."""
        await self._free.wait()
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise HomeUnusable("the disk is full")


class MemoryLedger:
    """Receipts in the order in which they came, and how many came at once."""

    def __init__(self, disk: Disk) -> None:
        self.receipts: list[Receipt] = []
        self.signed: list[bytes] = []
        self.batches: list[int] = []
        self._disk = disk

    async def append(self, receipts: Sequence[tuple[Receipt, bytes]]) -> None:
        """Keep them, once the disk lets them."""
        await self._disk.write()
        self.batches.append(len(receipts))
        self.receipts += [receipt for receipt, _ in receipts]
        self.signed += [signed for _, signed in receipts]


class MemoryBook:
    """Where members were last reached."""

    def __init__(self, members: dict[NodeId, tuple[str, ...]] | None = None) -> None:
        self.members = dict(members or {})

    async def remember(self, node: NodeId, addresses: Sequence[str]) -> None:
        """The newest comes first."""
        await trio.lowlevel.checkpoint()
        self.members = {node: tuple(addresses), **self.members}

    async def recall(self) -> tuple[tuple[NodeId, tuple[str, ...]], ...]:
        """All of them."""
        await trio.lowlevel.checkpoint()
        return tuple(self.members.items())


class MemorySettings:
    """The owner's share."""

    def __init__(self, share: Share, disk: Disk) -> None:
        self.share = share
        self._disk = disk

    async def load_share(self) -> Share:
        """As it was saved."""
        await trio.lowlevel.checkpoint()
        return self.share

    async def save_share(self, share: Share) -> None:
        """Keep it, once the disk lets it."""
        await self._disk.write()
        self.share = share


class MemoryModels:
    """Registered model files; ``files`` are those that `add` finds, by path."""

    def __init__(self, registered: Sequence[ModelFile], files: Sequence[ModelFile] = ()) -> None:
        self._registered = list(registered)
        self._files = {file.path: file for file in files}
        self.versions: dict[str, str] = {}

    async def list(self) -> tuple[ModelFile, ...]:
        """Those registered."""
        await trio.lowlevel.checkpoint()
        return tuple(self._registered)

    async def add(self, path: str, name: str | None) -> ModelFile:
        """Register; raises NotFound, AlreadyDone."""
        await trio.lowlevel.checkpoint()
        if path not in self._files:
            raise NotFound(f"no file {path}")
        if self._files[path] in self._registered:
            raise AlreadyDone("registered already")
        self._registered.append(self._files[path])
        return self._files[path]

    async def remove(self, name: str) -> ModelFile:
        """Unregister; raises NotFound."""
        await trio.lowlevel.checkpoint()
        for file in self._registered:
            if file.name == name:
                self._registered.remove(file)
                return file
        raise NotFound(f"no model {name}")

    async def version(self, file: ModelFile) -> str:
        """What the test says it is."""
        await trio.lowlevel.checkpoint()
        return self.versions.get(file.path, "1")
