"""Who probably holds a prompt's beginning, and when that decides."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshd.core.chat import Message
from meshd.core.generation import Prompt
from meshd.policy.placement import PlacementView, place
from meshd.policy.prefixes import BLOCK_BYTES, BYTES_PER_TOKEN, LIFE_S, MAX_ENTRIES, Prefixes
from tests.policy.make import MODEL, candidate, job, node, offer

A, B = node(1), node(2)
TEXT = "".join(f"line {n}, " for n in range(1000))


def test_the_next_turn_knows_who_had_the_last_one() -> None:
    prefixes = Prefixes()
    turns = (Message("user", TEXT[:3000]),)
    prefixes.note(MODEL, Prompt(messages=turns), A, 0.0)
    longer = Prompt(messages=(*turns, Message("assistant", "well"), Message("user", "and?")))
    held = prefixes.warm(MODEL, longer, 1.0)
    assert set(held) == {A} and 3000 - BLOCK_BYTES < held[A] * BYTES_PER_TOKEN <= 3000 + BLOCK_BYTES
    assert prefixes.warm("another", longer, 1.0) == {} and prefixes.warm(MODEL, longer, LIFE_S + 1) == {}
    assert prefixes.warm(MODEL, Prompt("x" + TEXT), 1.0) == {}


def test_of_several_each_holds_what_it_had_last() -> None:
    prefixes = Prefixes()
    prefixes.note(MODEL, Prompt(TEXT[: 10 * BLOCK_BYTES]), A, 0.0)
    prefixes.note(MODEL, Prompt(TEXT[: 4 * BLOCK_BYTES]), B, 0.0)
    held = prefixes.warm(MODEL, Prompt(TEXT), 0.0)
    block_tokens = BLOCK_BYTES / BYTES_PER_TOKEN
    assert held == {A: 10 * block_tokens, B: 4 * block_tokens}


@given(st.text(max_size=2000), st.text(max_size=2000))
def test_never_more_than_there_is_in_common(one: str, two: str) -> None:
    prefixes = Prefixes()
    prefixes.note(MODEL, Prompt(one), A, 0.0)
    a, b = one.encode(), two.encode()
    common = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    held = prefixes.warm(MODEL, Prompt(two), 0.0).get(A, 0.0) * BYTES_PER_TOKEN
    assert held == common - common % BLOCK_BYTES


def test_memory_is_bounded() -> None:
    prefixes = Prefixes()
    for number in range(MAX_ENTRIES // 100):
        prefixes.note(MODEL, Prompt(f"{number:06}" + TEXT * 4), A, 0.0)
    assert len(prefixes._workers) == MAX_ENTRIES


def test_a_warm_worker_is_preferred_as_far_as_it_is_worth_it() -> None:
    wanted = job(text=TEXT, max_tokens=10)
    tokens = len(TEXT) / BYTES_PER_TOKEN
    view = PlacementView()
    for number in range(1, 20):
        view.put(candidate(number))
    assert all(place(view, wanted, (), None, 0.0, {node(n): tokens}).worker == node(n) for n in range(1, 20))
    view = PlacementView()
    view.put(candidate(1, models=(offer(rate=1.0),)))
    view.put(candidate(2, models=(offer(rate=1000.0),)))
    assert place(view, wanted, (), None, 0.0, {A: tokens}).worker == B, "computing it elsewhere is quicker still"
