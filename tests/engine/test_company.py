"""Whether company changes numbers is found out: by every bit, at several sizes, leaving nothing behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from meshd.engine.company import company_matters
from meshd.engine.sampling import Logits
from meshd.engine.schedule import Feed

FIRST = 4


class Arithmetic:
    """A model whose numbers change by one bit in steps of ``touchy`` rows or more. Knows what each slot holds."""

    context_tokens = 512
    vocab_tokens = 100

    def __init__(self, touchy: int, status: int = 0) -> None:
        self.touchy, self.status = touchy, status
        self.sizes: list[int] = []
        self.held: dict[int, int] = {}

    def decode(self, feeds: Sequence[Feed]) -> int:
        assert [feed.slot for feed in feeds] == list(range(FIRST, FIRST + len(feeds)))
        for feed in feeds:
            assert self.held.get(feed.slot, 0) == feed.position
            self.held[feed.slot] = feed.position + len(feed.tokens)
        self.sizes.append(len(feeds))
        return self.status if len(feeds) > 1 else 0

    def logits(self, row: int) -> Logits:
        one = np.float32(1)
        return np.array([np.nextafter(one, 2, dtype=np.float32) if self.sizes[-1] >= self.touchy else one])

    def keep(self, slot: int, tokens: int) -> bool:
        self.held[slot] = min(self.held.get(slot, 0), tokens)
        return True


@pytest.mark.parametrize(("touchy", "matters"), [(99, False), (2, True), (4, True), (6, True), (7, False)])
def test_a_single_bit_at_any_size_counts(touchy: int, matters: bool) -> None:
    model = Arithmetic(touchy)
    assert company_matters(model, FIRST, 6) is matters
    assert sorted(set(model.sizes)) == [1, 2, 4, 6] and not any(model.held.values())


def test_what_cannot_be_compared_is_taken_to_matter() -> None:
    assert company_matters(Arithmetic(99), FIRST, 1)
    assert company_matters(Arithmetic(99, status=1), FIRST, 4)
