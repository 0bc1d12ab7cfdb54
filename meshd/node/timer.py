"""A deadline that moves: wakes a machine when its own next deadline has come."""

from __future__ import annotations

import math
from collections.abc import Callable

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
