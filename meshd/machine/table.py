"""What the machines have in common: a transition table that answers every case, and a bounded story.

A table maps (state, event class) to a rule: a function of the machine, or `Ignored` with the reason. There is no
default: a test asks `unanswered` of each table, so that nobody can add a state or an event and forget a case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from typing import Any, Final

from meshd.core.generation import Token

STORY_ENTRIES: Final = 512
"""Enough for some twenty attempts of one job with everything that happened to them."""

_BULKY = frozenset({"delivered", "task", "host", "job_body", "ad", "receipt"})


@dataclass(frozen=True, slots=True)
class Ignored:
    """The event changes nothing in this state, because of ``reason``."""

    reason: str


def unanswered(table: Mapping[Any, Any], states: Iterable[StrEnum], events: Iterable[type]) -> list[tuple[Any, Any]]:
    """The (state, event) pairs without an answer; a table is total when there is none."""
    kinds = tuple(events)
    return [(state, event) for state in states for event in kinds if (state, event) not in table]


def row(event: type, **rules: Any) -> dict[tuple[str, type], Any]:
    """One line of a table: the answer to ``event`` in each state, given by the state's name."""
    return {(state, event): rule for state, rule in rules.items()}


@dataclass(frozen=True, slots=True)
class StoryEntry:
    """One step: what came, in which state, what followed. ``count`` equal steps in a row are kept as one."""

    at_s: float
    subject: str
    before: str
    event: str
    after: str
    effects: tuple[str, ...]
    ignored: str = ""
    count: int = 1

    def __str__(self) -> str:
        times = f" x{self.count}" if self.count > 1 else ""
        follows = f" [{self.ignored}]" if self.ignored else "".join(f"; {e}" for e in self.effects)
        moved = f"{self.before} -> {self.after}" if self.before != self.after else self.after
        return f"{self.at_s:.3f} {moved}: {self.event}{times}{follows}"


class Story:
    """The last `STORY_ENTRIES` steps of a machine; the oldest are forgotten first."""

    def __init__(self, entries: int = STORY_ENTRIES) -> None:
        self._entries: deque[StoryEntry] = deque(maxlen=entries)

    def record(
        self, at_s: float, subject: str, before: str, event: object, after: str, outcome: Collection[object] | Ignored
    ) -> None:
        """Remember a step. A stream of equal ones (tokens, heartbeats) is counted, not listed."""
        what = describe(event)
        ignored = outcome.reason if isinstance(outcome, Ignored) else ""
        effects = () if isinstance(outcome, Ignored) else tuple(describe(e) for e in outcome)
        count = 1
        if self._entries:
            last = self._entries[-1]
            if (last.subject, last.before, last.event, last.after) == (subject, before, what, after):
                count = last.count + 1
                self._entries.pop()
        self._entries.append(StoryEntry(at_s, subject, before, what, after, effects, ignored, count))

    def of(self, subject: str | None = None) -> tuple[StoryEntry, ...]:
        """The steps about ``subject`` (a job or node id), oldest first; all of them for None."""
        return tuple(e for e in self._entries if subject in (None, e.subject))


def describe(thing: object) -> str:
    """A short line about an event or effect: its name and its small fields. Never prompt or answer text."""
    parts = []
    kind: Any = type(thing)
    for name in _small_fields(kind):
        value = getattr(thing, name)
        if value is None or value == () or value == "":
            continue
        if name == "tokens" and isinstance(value, tuple):
            parts.append("tokens")
        else:
            parts.append(f"{name}={_short(value)}")
    return type(thing).__name__ + (f"({', '.join(parts)})" if parts else "")


@cache
def _small_fields(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls) if f.name not in _BULKY)


def _short(value: object) -> str:
    if isinstance(value, Token):
        return f"token {value.index}"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
