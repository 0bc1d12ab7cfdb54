"""Deadlines that move: wakes a machine, or each of many, when its own next deadline has come."""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

import trio

STUCK_PAUSE_S = 0.01
"""A deadline that has come, and that `due` did not move, is looked at again after so long: never a busy loop."""


class Timer:
    """Calls ``due`` whenever the time of ``deadline()`` has come.

    A deadline that only moves later (every token moves it) costs nothing: the timer wakes at the old one, looks,
    and sleeps again. Call `poke` after anything that may have moved it earlier.
    """

    def __init__(self, deadline: Callable[[], float | None], due: Callable[[], None]) -> None:
        self._deadline = deadline
        self._due = due
        self._sleep = trio.CancelScope()

    def poke(self) -> None:
        """Sleep no longer than until the deadline as it stands now."""
        at = self._at()
        if at < self._sleep.deadline:
            self._sleep.deadline = at

    def _at(self) -> float:
        at = self._deadline()
        return math.inf if at is None else at

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._at()) as self._sleep:
                await trio.sleep_forever()
            if self._at() <= trio.current_time():
                self._due()
            await trio.sleep(STUCK_PAUSE_S if self._at() <= trio.current_time() else 0)


class Sleeper(Protocol):
    """Somebody with a deadline."""

    def next_deadline(self) -> float | None:
        """When it wants to be woken (trio time); None while time changes nothing for it."""

    def wake(self) -> None:
        """Its deadline has come."""


class Alarms:
    """Keeps time for many sleepers with one task: a job costs a heap entry, not a task of its own.

    As with `Timer`, a deadline that only moves later costs nothing until the old one has come.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sleeper]] = []
        self._set: dict[Sleeper, float] = {}
        self._number = count()
        self._timer = Timer(self._first, self._wake_due)

    def poke(self, sleeper: Sleeper) -> None:
        """Wake ``sleeper`` no later than its deadline as it stands now."""
        at = sleeper.next_deadline()
        if at is not None and at < self._set.get(sleeper, math.inf):
            self._set[sleeper] = at
            heappush(self._heap, (at, next(self._number), sleeper))
            self._timer.poke()

    def forget(self, sleeper: Sleeper) -> None:
        """Never wake ``sleeper`` again. Idempotent."""
        self._set.pop(sleeper, None)

    async def run(self) -> None:
        """Run until cancelled."""
        await self._timer.run()

    def _first(self) -> float | None:
        while self._heap and self._set.get(self._heap[0][2]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _wake_due(self) -> None:
        now_s = trio.current_time()
        due: list[Sleeper] = []
        while (first := self._first()) is not None and first <= now_s:
            sleeper = heappop(self._heap)[2]
            del self._set[sleeper]
            due.append(sleeper)
        for sleeper in due:
            deadline = sleeper.next_deadline()
            if deadline is not None and deadline <= now_s:
                sleeper.wake()
            self.poke(sleeper)
