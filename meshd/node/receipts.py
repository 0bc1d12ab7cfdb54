"""Keeps receipts: written in batches by one task, so that an attempt costs no disk round trip of its own."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from meshd.core.errors import MeshError
from meshd.core.receipt import Receipt
from meshd.node.stores import Ledger
from meshd.wire.receipt import receipt_id

log = logging.getLogger("meshd.node.receipts")

WAITING_RECEIPTS = 4096
"""Receipts that may wait for the disk; beyond it `keep` waits and `keep_soon` drops with a warning."""

GATHER_S = 0.05
"""How long receipts that nobody waits for are gathered: a write costs about a millisecond, however many it holds."""

WRITE_TIMEOUT_S = 5.0
"""A disk that takes longer does not hold up answers, nor the end of the daemon."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    receipt: Receipt
    signed: bytes
    kept: trio.Event


class ReceiptKeeper:
    """Appends receipts to the ledger. `run` must be running."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._hurry = trio.Event()
        self._send, self._receive = trio.open_memory_channel[_Waiting](WAITING_RECEIPTS)

    async def run(self) -> None:
        """Write until cancelled; what waits then is still written."""
        try:
            async for first in self._receive:
                try:
                    with trio.move_on_after(GATHER_S):
                        await self._hurry.wait()
                finally:
                    self._hurry = trio.Event()
                    await self._write(self._batch(first))
        finally:
            if self._receive.statistics().current_buffer_used:
                await self._write(self._batch(self._receive.receive_nowait()))

    def _batch(self, first: _Waiting) -> list[_Waiting]:
        batch = [first]
        while self._receive.statistics().current_buffer_used and len(batch) < WAITING_RECEIPTS:
            batch.append(self._receive.receive_nowait())
        return batch

    async def _write(self, batch: list[_Waiting]) -> None:
        """Write, even while the node stops: what was begun is finished, within a bound."""
        try:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_TIMEOUT_S) as scope:
                await self._ledger.append([(w.receipt, w.signed) for w in batch])
            if scope.cancelled_caught:
                log.error("cannot keep %d receipts: the disk takes longer than %g s", len(batch), WRITE_TIMEOUT_S)
        except MeshError as e:
            log.error("cannot keep %d receipts: %s", len(batch), e.message)
        finally:
            for waiting in batch:
                waiting.kept.set()

    async def keep(self, receipt: Receipt, signed: bytes) -> str:
        """Return the receipt's id once it is on disk (or the disk failed, which the log says)."""
        waiting = _Waiting(receipt, signed, trio.Event())
        await self._send.send(waiting)
        self._hurry.set()
        await waiting.kept.wait()
        return receipt_id(signed)

    def keep_soon(self, receipt: Receipt, signed: bytes) -> str:
        """Return the receipt's id at once; it is written a moment later."""
        try:
            self._send.send_nowait(_Waiting(receipt, signed, trio.Event()))
        except trio.WouldBlock:
            log.warning("the disk is too slow: a receipt was not kept")
        return receipt_id(signed)
