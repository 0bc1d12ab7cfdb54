"""Which tokens go into the next decode step. Pure: no llama.cpp, no clock.

Sequences that share batches ("shared") all give one token a step; on top, the waiting prompts share what room there is
for them equally, so that a long prompt neither stalls the running answers for longer than that, nor keeps a short one
behind it waiting.

An exact sequence is decoded in shapes that depend on nothing but its own prompt: chunks of ``EXACT_CHUNK_TOKENS``, each
a step of its own, then one token a step, replayed tokens included. Floating-point sums depend on how many tokens of a
sequence are computed together, so this is what makes two workers agree to the last bit. Whether they also depend on
the company of other sequences in a step, the engine finds out before the first exact answer (``company_matters``):
where they do, every step of an exact sequence is its own; where not, the single tokens of exact sequences are decoded
together. Exact ones have a cache of their own, so they never share steps with the others; all take turns.
docs/decisions/0010 has the measurements.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

EXACT_CHUNK_TOKENS: Final = 64
"""Part of the meaning of ``exact``: changing it breaks resuming exact answers begun by an older build."""

_SHARED: Final = -1
_TOGETHER: Final = -2
"""The turns of the shared batch, and of exact single tokens; other turns are ids of exact sequences."""


@dataclass(slots=True)
class Line:
    """One sequence: ``tokens`` are known, the first ``decoded`` of them are in the cache. ``held``: skipped for now,
    because its reader lags. ``owner``: who asked for it."""

    id: int
    slot: int
    exact: bool
    prompt_tokens: int
    tokens: list[int]
    decoded: int = 0
    held: bool = False
    owner: str = ""

    @property
    def pending(self) -> int:
        """Tokens known and not decoded yet."""
        return len(self.tokens) - self.decoded


@dataclass(frozen=True, slots=True)
class Feed:
    """``tokens`` of one sequence for this step, from ``position``; ``logits``: of the last token, wanted.
    ``complete``: nothing is pending after it, so the next token must be drawn."""

    id: int
    slot: int
    position: int
    tokens: tuple[int, ...]
    logits: bool
    complete: bool


class Schedule:
    """All sequences of one context and whose turn it is. ``room_tokens(running)``: how many tokens of prompts a step
    may hold beside so many running answers."""

    def __init__(self, room_tokens: Callable[[int], int]) -> None:
        self._room_tokens = room_tokens
        self.company_matters = True
        self._lines: dict[int, Line] = {}
        self._turns: deque[int] = deque([_SHARED, _TOGETHER])

    def add(self, line: Line) -> None:
        """Let ``line`` take part from the next step on; prompts are served in this order."""
        self._lines[line.id] = line
        if line.exact:
            self._turns.append(line.id)

    def remove(self, id: int) -> None:
        """Forget the sequence; unknown ids are ignored."""
        line = self._lines.pop(id, None)
        if line is not None and line.exact:
            self._turns.remove(id)

    def line(self, id: int) -> Line:
        """The sequence of that id."""
        return self._lines[id]

    def advance(self, feed: Feed) -> None:
        """The tokens of ``feed`` are in the cache now."""
        self._lines[feed.id].decoded += len(feed.tokens)

    def next_step(self) -> list[Feed]:
        """What to decode now; empty when no sequence can go on."""
        for _ in range(len(self._turns)):
            turn = self._turns[0]
            self._turns.rotate(-1)
            feeds = self._feeds_of(turn)
            if feeds:
                return feeds
        return []

    def _feeds_of(self, turn: int) -> list[Feed]:
        if turn == _SHARED:
            return self._shared()
        return self._together() if turn == _TOGETHER else self._exact(self._lines[turn])

    def _able(self, *, exact: bool) -> list[Line]:
        return [line for line in self._lines.values() if line.exact is exact and line.pending and not line.held]

    def _together(self) -> list[Feed]:
        feeds = [_feed(line, 1, logits=True) for line in self._able(exact=True) if self._joins(line)]
        return sorted(feeds, key=lambda feed: feed.slot)

    def _joins(self, line: Line) -> bool:
        """Whether the exact sequence's next step may be that of others, too: single tokens, where that is known."""
        return not self.company_matters and line.decoded >= line.prompt_tokens

    def _exact(self, line: Line) -> list[Feed]:
        if line.held or not line.pending or self._joins(line):
            return []
        prompt_left = line.prompt_tokens - line.decoded
        # Logits are asked for on every step, needed or not: the shapes must be those of the undisturbed run.
        return [_feed(line, min(EXACT_CHUNK_TOKENS, prompt_left) if prompt_left > 0 else 1, logits=True)]

    def _shared(self) -> list[Feed]:
        able = self._able(exact=False)
        feeds = [_feed(line, 1) for line in able if line.pending == 1]
        prompts = [line for line in able if line.pending > 1]
        if prompts:
            parts = shares([line.pending for line in prompts], self._room_tokens(len(feeds)))
            feeds += [_feed(line, part) for line, part in zip(prompts, parts, strict=True) if part]
        # llama.cpp computes neighbouring slots in rising order together, and whatever breaks that order apart.
        return sorted(feeds, key=lambda feed: feed.slot)


def shares(wanted: Sequence[int], room: int) -> list[int]:
    """``room`` shared out: equally, nobody more than ``wanted``, what is left over to those who want more. Whoever
    came first gets the odd ones."""
    given = [0] * len(wanted)
    hungry = [at for at, want in enumerate(wanted) if want]
    while room > 0 and hungry:
        part = max(room // len(hungry), 1)
        for at in hungry[:room]:
            more = min(part, wanted[at] - given[at])
            given[at] += more
            room -= more
        hungry = [at for at in hungry if given[at] < wanted[at]]
    return given


def _feed(line: Line, count: int, *, logits: bool = False) -> Feed:
    complete = count == line.pending
    return Feed(
        id=line.id,
        slot=line.slot,
        position=line.decoded,
        tokens=tuple(line.tokens[line.decoded : line.decoded + count]),
        logits=logits or complete,
        complete=complete,
    )
