"""The owner's side of sharing: what is on, what follows for the engine, and the words that say why."""

from __future__ import annotations

from dataclasses import replace

from meshd.core.ad import OfferState
from meshd.core.engine import EngineLimits
from meshd.core.share import Share
from meshd.node.stores import Settings


def limits_of(share: Share, cpu_threads: int) -> EngineLimits:
    """What ``share`` means for an engine on a machine of ``cpu_threads`` threads.

    Not shared: the machine is its owner's alone, and its own jobs may use all of it. Shared: whole threads first;
    the fraction that a thread count cannot express is kept by working only part of the time (``duty``).
    """
    if not share.enabled:
        return EngineLimits(threads=max(1, cpu_threads))
    wanted = share.cpu * cpu_threads
    threads = max(1, min(cpu_threads, int(wanted + 0.999)))
    return EngineLimits(threads=threads, duty=min(1.0, wanted / threads), memory_bytes=share.memory_bytes)


class Guest:
    """The owner's current will. Kept on disk but for draining, which ends with the daemon."""

    def __init__(self, share: Share, settings: Settings) -> None:
        self.share = share
        self.draining = False
        self._settings = settings

    async def change(self, *, draining: bool | None = None, **changes: object) -> Share:
        """Change and keep the share; raises BadInput (a limit out of range), and then nothing changed."""
        share = replace(self.share, **changes)  # type: ignore[arg-type]
        await self._settings.save_share(share)
        self.share = share
        if draining is not None:
            self.draining = draining
        return share

    def state(self, slots_free: int) -> tuple[OfferState, str]:
        """Whether others may send work now, and why not, in words."""
        if not self.share.enabled:
            return OfferState.NOT_SHARING, "the owner has not shared this machine"
        if self.share.paused:
            return OfferState.PAUSED, "paused by the owner"
        if self.draining:
            return OfferState.DRAINING, "draining: finishing what runs"
        if slots_free <= 0:
            return OfferState.BUSY, "every slot is taken"
        return OfferState.OPEN, ""
