"""Which cache slot a sequence gets, and what the idle ones still hold. Pure.

A sequence that ends leaves its tokens in the cache. The next one whose tokens begin alike goes on behind what is the
same: a chat's next turn computes only what is new. Where the holder is still at work, or would lose much that another
chat may come back for, its slot is copied.

What may be kept is limited by two things. A model with a sliding window forgets early positions, and a cache that has
done so cannot go back behind them. And an exact sequence takes over only what another computed from a prompt, in whole
chunks, in a cache that has forgotten nothing: then every number is the one that it would have computed itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from meshd.engine.schedule import EXACT_CHUNK_TOKENS, Line

MIN_KEPT_TOKENS: Final = 16
"""Less is not worth a slot's other contents: every prompt of a template begins alike."""

MIN_COPIED_TOKENS: Final = 64
"""A copy moves the slot's whole memory, some ten milliseconds; as many tokens take hundreds."""

TAIL_WORTH_TOKENS: Final = 32
"""An idle slot that would lose more than this is copied rather than cut, while another is free."""

MAX_GAP_SLOTS: Final = 8
"""llama.cpp decodes neighbouring slots together; a gap costs another pass over the weights. On a CPU that is about
eight tokens in the batch, on a GPU more."""


@dataclass(slots=True)
class Slot:
    """One sequence's part of the cache. ``line``: the sequence whose tokens it holds, running or ended (then it is not
    ``busy``). ``used``: when it was given back last, in an order of its own."""

    line: Line | None = None
    used: int = 0
    busy: bool = False

    @property
    def held(self) -> int:
        """Tokens in the cache."""
        return self.line.decoded if self.line is not None else 0


@dataclass(frozen=True, slots=True)
class Grant:
    """Use ``slot``, keeping its first ``kept`` tokens; first copy ``source`` into it, if there is one."""

    slot: int
    kept: int = 0
    source: int | None = None


@dataclass(frozen=True, slots=True)
class _Holder:
    kept: int
    slot: int
    in_place: bool


class Slots:
    """The slots from number ``first`` on; exact sequences have slots of their own. ``reaches_back(slot, tokens)``:
    whether that slot's cache can be cut to so many tokens and go on (it has not forgotten what the next token looks
    back at). ``untouched(slot)``: whether it has forgotten nothing at all."""

    def __init__(
        self,
        count: int,
        reaches_back: Callable[[int, int], bool],
        untouched: Callable[[int], bool],
        *,
        first: int = 0,
        exact: bool = False,
    ) -> None:
        self._slots = {first + n: Slot() for n in range(count)}
        self._exact = exact
        self._reaches_back = reaches_back
        self._untouched = untouched
        self._clock = 0

    @property
    def free(self) -> int:
        """Slots that no sequence uses."""
        return sum(not slot.busy for slot in self._slots.values())

    def take(self, tokens: Sequence[int], prompt_tokens: int, owner: str = "") -> Grant:
        """A slot for a sequence that begins with ``tokens``, the first ``prompt_tokens`` of them its prompt; the last
        of them is always left to compute, and only what ``owner`` asked for is kept. ValueError when no slot is
        free."""
        if not self.free:
            raise ValueError("no slot is free")
        grant = self._grant(self._holder(tokens, prompt_tokens, owner))
        self._slots[grant.slot] = Slot(busy=True)
        return grant

    def enter(self, line: Line) -> None:
        """``line`` runs in the slot that it was granted: what it decoded, others may copy."""
        self._slots[line.slot].line = line

    def give(self, slot: int) -> None:
        """The slot's sequence ended; what it holds is there for whoever comes."""
        self._clock += 1
        self._slots[slot].busy, self._slots[slot].used = False, self._clock

    def clear(self, slot: int) -> None:
        """As `give`, but the cache holds nothing any more."""
        self._slots[slot] = Slot()

    def fillers(self, taken: Sequence[int]) -> list[tuple[int, int]]:
        """(slot, tokens it holds) of the idle slots between those ``taken`` (rising) where a token more in the batch
        is cheaper than what a gap costs."""
        gaps = [range(low + 1, high) for low, high in pairwise(taken) if 1 < high - low <= MAX_GAP_SLOTS + 1]
        return [(n, self._slots[n].held) for gap in gaps for n in gap if not self._slots[n].busy]

    def _grant(self, holder: _Holder | None) -> Grant:
        if holder is None:
            return Grant(self._emptiest(None))
        if holder.in_place:
            return Grant(holder.slot, holder.kept)
        return Grant(self._emptiest(holder.slot), holder.kept, holder.slot)

    def _holder(self, tokens: Sequence[int], prompt_tokens: int, owner: str) -> _Holder | None:
        """The slot that holds the longest usable beginning of ``tokens``."""
        best: _Holder | None = None
        for number, slot in self._slots.items():
            if slot.line is None or slot.line.owner != owner:
                continue
            kept = self._usable(number, slot, tokens, prompt_tokens)
            in_place = not slot.busy and (slot.held - kept <= TAIL_WORTH_TOKENS or self.free == 1)
            if kept < (MIN_KEPT_TOKENS if in_place else MIN_COPIED_TOKENS):
                continue
            if best is None or (kept, in_place) > (best.kept, best.in_place):
                best = _Holder(kept, number, in_place)
        return best

    def _usable(self, number: int, slot: Slot, tokens: Sequence[int], prompt_tokens: int) -> int:
        line = slot.line
        if line is None:
            return 0
        if self._exact:
            computed = min(line.decoded, line.prompt_tokens)
            common = _common(line.tokens, tokens, min(computed, prompt_tokens - 1))
            kept = common - common % EXACT_CHUNK_TOKENS
            return kept if kept and self._untouched(number) else 0
        kept = _common(line.tokens, tokens, min(line.decoded, len(tokens) - 1))
        return kept if kept and self._reaches_back(number, kept) else 0

    def _emptiest(self, but: int | None) -> int:
        """An idle slot: beside a busy one, since a gap costs more than what a cache may save; of these (or of all) an
        empty one, else the one not used for the longest time, the lowest of several."""
        idle = [n for n, slot in self._slots.items() if not slot.busy and n != but]
        beside = [n for n in idle if self._busy(n - 1) or self._busy(n + 1)]
        return min(beside or idle, key=lambda n: (self._slots[n].held > 0, self._slots[n].used, n))

    def _busy(self, number: int) -> bool:
        slot = self._slots.get(number)
        return slot is not None and slot.busy


def _common(held: Sequence[int], wanted: Sequence[int], at_most: int) -> int:
    """How many tokens the two have in common from the first, at most so many."""
    limit = min(len(held), len(wanted), at_most)
    if limit <= 0:
        return 0
    if list(held[:limit]) == list(wanted[:limit]):
        return limit
    return next(at for at in range(limit) if held[at] != wanted[at])
