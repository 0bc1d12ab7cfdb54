"""Which offers were seen before, and which attempt of a job is the latest: bounded, remembered until they expire."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import Final

from meshd.core import limits
from meshd.core.ids import AttemptId, JobId, NodeId
from meshd.core.task import DeclineReason

ENTRIES_OF_ONE: Final = limits.REPLAY_CACHE_ENTRIES * 3 // 4
"""What one submitter may fill: at 700 tasks/s it has enough, and cannot have everybody else declined."""

_Key = tuple[NodeId, JobId]


@dataclass(slots=True)
class _Seen:
    numbers: set[int]
    until_s: float


class Replays:
    """Offers by (submitter, job). An entry lives until the last offer of that job has expired (monotonic seconds)."""

    def __init__(self, max_offers: int = limits.REPLAY_CACHE_ENTRIES, max_of_one: int = ENTRIES_OF_ONE) -> None:
        self._seen: dict[_Key, _Seen] = {}
        self._expiries: list[tuple[float, _Key]] = []
        self._offers = 0
        self._of_one: Counter[NodeId] = Counter()
        self._max_offers = max_offers
        self._max_of_one = max_of_one

    def __len__(self) -> int:
        return self._offers

    def check(self, submitter: NodeId, attempt: AttemptId, until_s: float, now_s: float) -> DeclineReason | None:
        """Remember the offer until ``until_s``, or say why it is refused: seen before (`REPLAYED`), fenced off by a
        later attempt (`WRONG_ATTEMPT`), or no room to remember it, so that its replay could not be told (`BUSY`)."""
        self._forget(now_s)
        key = (submitter, attempt.job)
        seen = self._seen.get(key)
        if seen is not None and attempt.number in seen.numbers:
            return DeclineReason.REPLAYED
        if seen is not None and attempt.number < max(seen.numbers):
            return DeclineReason.WRONG_ATTEMPT
        if self._offers >= self._max_offers or self._of_one[submitter] >= self._max_of_one:
            return DeclineReason.BUSY
        self._remember(key, attempt.number, until_s)
        return None

    def _remember(self, key: _Key, number: int, until_s: float) -> None:
        seen = self._seen.setdefault(key, _Seen(set(), until_s))
        seen.numbers.add(number)
        seen.until_s = max(seen.until_s, until_s)
        self._offers += 1
        self._of_one[key[0]] += 1
        heapq.heappush(self._expiries, (until_s, key))

    def _forget(self, now_s: float) -> None:
        while self._expiries and self._expiries[0][0] <= now_s:
            _, key = heapq.heappop(self._expiries)
            seen = self._seen.get(key)
            if seen is not None and seen.until_s <= now_s:
                self._offers -= len(seen.numbers)
                self._of_one[key[0]] -= len(seen.numbers)
                if not self._of_one[key[0]]:
                    del self._of_one[key[0]]
                del self._seen[key]
