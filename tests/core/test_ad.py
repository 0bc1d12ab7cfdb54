"""What an ad may say: it comes from other machines, decides where jobs go, and is shown on terminals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from meshd.core.ad import MAX_TOKENS_PER_S, MIN_TOKENS_PER_S, Gpu, ModelOffer
from meshd.core.errors import BadInput
from meshd.policy.placement import PlacementView, place
from tests.policy.make import DIGEST, MODEL, ad, candidate, job, offer

ESCAPE = "\x1b]0;owned\x07"


@pytest.mark.parametrize("rate", [-1.0, -5e-324, 5e-324, 1e300])
@pytest.mark.parametrize("field", ["prefill_tokens_per_s", "generation_tokens_per_s"])
def test_a_rate_that_placement_could_not_reckon_with_is_refused(field: str, rate: float) -> None:
    rates: dict[str, Any] = {field: rate}
    with pytest.raises(BadInput):
        replace(offer(), **rates)


@pytest.mark.parametrize("text", ["", "Once upon a time " * 100_000])
@pytest.mark.parametrize("rates", [(lo, hi) for lo in (0.0, MIN_TOKENS_PER_S) for hi in (0.0, MAX_TOKENS_PER_S)])
def test_no_rate_that_is_allowed_keeps_jobs_from_being_placed(rates: tuple[float, float], text: str) -> None:
    view = PlacementView()
    for number, (prefill, generation) in enumerate((rates, rates[::-1])):
        view.put(candidate(number, models=(ModelOffer(MODEL, DIGEST, 4096, prefill, generation),)))
    assert place(view, job(text=text), (), None, 0.0).worker is not None


@pytest.mark.parametrize("field", ["name", "reason", "software"])
@pytest.mark.parametrize("text", [ESCAPE, "two\nlines", "\u202etxt.exe", "x" * 201])
def test_words_that_would_write_on_a_terminal_are_refused(field: str, text: str) -> None:
    words: dict[str, Any] = {field: text}
    with pytest.raises(BadInput):
        replace(ad(), **words)


def test_so_are_those_inside_it() -> None:
    for make in (
        lambda: Gpu(ESCAPE, 1, 1),
        lambda: Gpu("x", -1, 1),
        lambda: offer(name=f"tiny{ESCAPE}"),
        lambda: replace(ad(), addresses=(f"/dns/{ESCAPE}/tcp/1",)),
        lambda: replace(ad(), memory_bytes=-1),
        lambda: replace(offer(), context_tokens=-1),
    ):
        with pytest.raises(BadInput):
            make()
