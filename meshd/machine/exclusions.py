"""Whom one job does not ask for now, and why: who failed it or declined for good, and who was only busy."""

from __future__ import annotations

from typing import Final

from meshd.core.ids import NodeId
from meshd.policy.backoff import backoff_s

EXCLUDE_S: Final = 0.25
"""How long a worker is left out after its first failure in this job; each further one doubles it. Also after it was
busy, but that never doubles: it will be free, and who waits longest must not wait longer than it takes."""

_FOREVER: Final = float("inf")


class Exclusions:
    """One job's. Times are monotonic seconds; ``seed`` decides jitter."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._until_s: dict[NodeId, float] = {}
        self._busy_until_s: dict[NodeId, float] = {}
        self._faults: dict[NodeId, int] = {}

    def for_good(self, worker: NodeId) -> None:
        """Leave it out for the rest of the job."""
        self._until_s[worker] = _FOREVER

    def for_a_while(self, worker: NodeId, now_s: float, at_least_s: float = 0.0) -> None:
        """It failed, or declined for a reason that may pass."""
        tries = self._faults[worker] = self._faults.get(worker, 0) + 1
        wait_s = backoff_s(tries, self._seed, base_s=EXCLUDE_S)
        self._until_s[worker] = max(self._until_s.get(worker, 0.0), now_s + max(wait_s, at_least_s))

    def busy(self, worker: NodeId, now_s: float, at_least_s: float) -> None:
        """It had no slot."""
        self._busy_until_s[worker] = now_s + max(EXCLUDE_S, at_least_s)

    def now(self, now_s: float) -> frozenset[NodeId]:
        """Everybody who is left out now."""
        both = [*self._until_s.items(), *self._busy_until_s.items()]
        return frozenset(worker for worker, until_s in both if until_s > now_s)

    def any_busy(self, now_s: float) -> bool:
        """Whether somebody is left out for being busy."""
        return any(until_s > now_s for until_s in self._busy_until_s.values())

    def allow(self, worker: NodeId, now_s: float) -> bool:
        """Whether the worker would do, were it not busy."""
        return self._until_s.get(worker, 0.0) <= now_s

    def soonest_s(self, now_s: float) -> float:
        """When the next one may be asked again; infinity when nobody is left out for a while."""
        both = [*self._until_s.values(), *self._busy_until_s.values()]
        return min((until_s for until_s in both if until_s > now_s), default=_FOREVER)
