"""When an engine that says nothing has to be given up: judged by its silence, and by what its process does meanwhile.

An engine says something after every step, and every quarter of a second while it rests between steps. So its silence
is the length of one step, and steps of one model resemble each other: a silence many times as long as the longest
recent step means that something is wrong. Whether it is the engine shows from outside. A process that is stopped or
asleep hangs. So does one that has computed for longer than any step takes. One that wants the processor and does not
get it (the owner's programs go first), or waits for the disk, is only slow: it has until ``hang_after_s``, as
everything has.

Only time in which the watch itself went on counts: when this daemon was stopped, the engine's words wait unread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MIN_BOUND_S: Final = 2.0
"""Below this nobody is hung: garbage collection, a page fault, a grammar, the start of a noisy neighbour."""

FACTOR: Final = 8.0
"""How many times the longest recent step is too long. A step at the end of a long context takes a few times as long
as one at its beginning."""

FADE: Final = 0.98
"""What is left of the longest step with every message: after a hundred and fifty of them a twentieth."""

LONGEST_LOOK_S: Final = 1.0
"""More than that never passes between two looks, unless we ourselves stood still."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What a process shows from outside: the processor time it has used (s), and whether it wants to go on at this
    moment (it runs, waits for a processor, or for the disk)."""

    cpu_s: float
    wants_on: bool


class Watchdog:
    """One engine's. Times are monotonic seconds. ``heard`` at every message, ``look`` a few times a second."""

    def __init__(self, hang_after_s: float, now_s: float) -> None:
        self._hang_after_s = hang_after_s
        self._looked_at_s = now_s
        self._heard_at_s = now_s
        self._silent_s = 0.0
        self._longest_s = 0.0
        self._signs: Signs | None = None

    @property
    def bound_s(self) -> float:
        """How long a silence is one too long, by the steps seen so far."""
        return min(self._hang_after_s, max(MIN_BOUND_S, FACTOR * self._longest_s))

    def expect(self, step_s: float) -> None:
        """The longest step that is to be expected, before any was seen."""
        self._longest_s = max(self._longest_s, step_s)

    def stretch(self, times: float) -> None:
        """Steps take so many times as long from now on: the owner took processors away."""
        self._longest_s *= max(1.0, times)

    def begin(self, now_s: float) -> None:
        """From here on the engine has work: the silence before was nothing."""
        self._heard_at_s = self._looked_at_s = now_s
        self._silent_s, self._signs = 0.0, None

    def heard(self, now_s: float, *, busy: bool) -> None:
        """A message came. ``busy``: there was work, so the silence before it was a step."""
        if busy:
            step_s = min(now_s - self._heard_at_s, self._silent_s + LONGEST_LOOK_S)
            self._longest_s = max(step_s, self._longest_s * FADE)
        self.begin(now_s)

    def look(self, now_s: float, signs: Callable[[], Signs | None], *, patient: bool) -> str:
        """Why the engine must be given up now; empty while it need not. ``signs`` is asked only when it matters;
        ``patient``: it prepares a request, which takes as long as it takes."""
        self._silent_s += min(now_s - self._looked_at_s, LONGEST_LOOK_S)
        self._looked_at_s = now_s
        if self._silent_s > self._hang_after_s:
            return f"no progress for more than {self._hang_after_s:g} s"
        if self._silent_s < MIN_BOUND_S / 4:
            return ""
        before, after = self._signs, signs()
        if before is None or after is None:
            self._signs = after
            return ""
        return self._judge(before, after, patient)

    def _judge(self, before: Signs, after: Signs, patient: bool) -> str:
        bound_s, computed_s = self.bound_s, after.cpu_s - before.cpu_s
        if self._silent_s <= bound_s:
            return ""
        if computed_s <= 0 and not after.wants_on:
            return f"it stands still, no progress for more than {bound_s:.1f} s"
        if computed_s > bound_s and not patient:
            return f"one step computes for more than {bound_s:.1f} s"
        return ""
