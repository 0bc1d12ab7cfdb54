"""Whether the company of other sequences in a step changes a sequence's numbers: found out, not assumed.

It is a property of one processor's arithmetic: how its kernels sum a row may depend on how many rows there are. One
sequence computes the same token alone and beside 1, 3, 7, ... others, and every bit is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Protocol

from meshd.engine.sampling import Logits
from meshd.engine.schedule import EXACT_CHUNK_TOKENS, Feed

_MAX_SIZE: Final = 32


class Model(Protocol):
    """What is needed of a model; see llama.py."""

    context_tokens: int
    vocab_tokens: int

    def decode(self, feeds: Sequence[Feed]) -> int: ...

    def logits(self, row: int) -> Logits: ...

    def keep(self, slot: int, tokens: int) -> bool: ...


def company_matters(model: Model, first_slot: int, slots: int) -> bool:
    """Whether any bit differed, in the empty slots from ``first_slot`` on, which are empty again afterwards. True as
    well when nothing could be compared. Takes a chunk of a prompt and some ten steps."""
    token = model.vocab_tokens // 2
    count = min(EXACT_CHUNK_TOKENS, model.context_tokens - 1)
    chunk = Feed(0, first_slot, 0, tuple((token + n) % model.vocab_tokens for n in range(count)), True, True)
    done = model.decode([chunk]) == 0
    numbers = {_beside(model, first_slot, size, token, count) for size in _sizes(slots)} if done else set()
    model.keep(first_slot, 0)
    return slots < 2 or len(numbers) != 1 or None in numbers


def _sizes(slots: int) -> list[int]:
    sizes = [1 << n for n in range(_MAX_SIZE.bit_length()) if 1 << n <= slots]
    return [*sizes, slots] if sizes[-1] != slots <= _MAX_SIZE else sizes


def _beside(model: Model, first: int, size: int, token: int, count: int) -> bytes | None:
    """What the first slot computes behind its chunk beside ``size`` - 1 others."""
    others = [Feed(n, first + n, 0, (n % model.vocab_tokens,), True, True) for n in range(1, size)]
    done = model.decode([Feed(0, first, count, (token,), True, True), *others]) == 0
    numbers = blake2b(model.logits(0).tobytes()).digest() if done else None
    model.keep(first, count)
    for other in others:
        model.keep(other.slot, 0)
    return numbers
