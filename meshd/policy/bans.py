"""Peers that failed us lately are left alone for a while; each further fault doubles the while, time forgives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from meshd.core.ids import NodeId
from meshd.core.task import LossReason

BASE_BAN_S: Final = 1.0
MAX_BAN_S: Final = 300.0
HALF_LIFE_S: Final = 60.0
"""After so long without a fault half of the score is forgiven."""

MAX_SCORE: Final = 64.0
"""Far beyond the longest ban, and 2 to its power is a number still: a peer may fail hundreds of jobs at once. It is
forgiven within seven minutes."""

MAX_ENTRIES: Final = 10_000

WEIGHT: Final = {
    LossReason.UNREACHABLE: 1.0,
    LossReason.CONNECTION_LOST: 1.0,
    LossReason.SILENT: 1.0,
    LossReason.ENGINE_FAILED: 1.0,
    LossReason.LEASE_LAPSED: 0.5,
    LossReason.PROTOCOL: 4.0,
    LossReason.DECLINED: 0.0,
    LossReason.DRAINING: 0.0,
}
"""How heavy a fault weighs. Saying no, or leaving in good order, is none."""


@dataclass(slots=True)
class _Entry:
    score: float
    at_s: float
    until_s: float


class Bans:
    """Who is banned until when (monotonic seconds). Bounded: the entry whose ban ends first makes room."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._entries: dict[NodeId, _Entry] = {}
        self._max_entries = max_entries

    def score(self, node: NodeId, now_s: float) -> float:
        """The faults of ``node``, decayed to now; 0 for a clean peer."""
        entry = self._entries.get(node)
        return 0.0 if entry is None else entry.score * 0.5 ** ((now_s - entry.at_s) / HALF_LIFE_S)

    def fault(self, node: NodeId, reason: LossReason, now_s: float) -> float:
        """Count a fault; the time until which ``node`` is banned now."""
        score = min(MAX_SCORE, self.score(node, now_s) + WEIGHT[reason])
        if WEIGHT[reason] == 0:
            return self.banned_until_s(node)
        ban_s = min(MAX_BAN_S, BASE_BAN_S * 2 ** (score - 1))
        until_s = max(self.banned_until_s(node), now_s + ban_s)
        self._entries[node] = _Entry(score, now_s, until_s)
        self._shrink()
        return until_s

    def success(self, node: NodeId) -> None:
        """The peer completed a job for us: all is forgiven."""
        self._entries.pop(node, None)

    def banned_until_s(self, node: NodeId) -> float:
        """When the ban of ``node`` ends; minus infinity when it never had one."""
        entry = self._entries.get(node)
        return float("-inf") if entry is None else entry.until_s

    def banned(self, now_s: float) -> frozenset[NodeId]:
        """Everyone banned now."""
        return frozenset(n for n, e in self._entries.items() if e.until_s > now_s)

    def _shrink(self) -> None:
        if len(self._entries) > self._max_entries:
            del self._entries[min(self._entries, key=lambda n: self._entries[n].until_s)]
