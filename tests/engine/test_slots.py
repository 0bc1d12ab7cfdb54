"""Who gets which cache slot, and what of it may be kept."""

from __future__ import annotations

import pytest

from meshd.engine.schedule import EXACT_CHUNK_TOKENS, Line
from meshd.engine.slots import MAX_GAP_SLOTS, MIN_COPIED_TOKENS, MIN_KEPT_TOKENS, Grant, Slots

LONG = list(range(1000, 1400))


def slots_of(count: int, *, back: int = 10_000, forgot: bool = False, exact: bool = False, first: int = 0) -> Slots:
    """``back``: a cache reaches back to so many tokens before its end, or further when it forgot nothing."""
    reaches_back = lambda slot, tokens: tokens >= 10_000 - back  # noqa: E731
    return Slots(count, reaches_back, lambda slot: not forgot, exact=exact, first=first)


def run(slots: Slots, tokens: list[int], decoded: int | None = None, *, prompt: int = 0) -> Line:
    """A sequence of ``tokens``, the first ``decoded`` of them in the cache."""
    prompt_tokens = prompt or len(tokens)
    grant = slots.take(tokens, prompt_tokens)
    line = Line(1, grant.slot, False, prompt_tokens, list(tokens), len(tokens) if decoded is None else decoded)
    slots.enter(line)
    return line


def take(slots: Slots, tokens: list[int]) -> Grant:
    return slots.take(tokens, len(tokens))


def test_empty_slots_come_first_then_the_one_unused_for_the_longest_time() -> None:
    slots = slots_of(3)
    lines = [run(slots, [n] * 5) for n in range(3)]
    assert [line.slot for line in lines] == [0, 1, 2] and slots.free == 0
    with pytest.raises(ValueError, match="free"):
        take(slots, LONG)
    for slot in (1, 0):
        slots.give(slot)
    assert take(slots, LONG) == Grant(1) and take(slots, LONG) == Grant(0)


def test_busy_slots_stay_neighbours_whatever_was_used_longest_ago() -> None:
    slots = slots_of(9)
    lines = [run(slots, [n] * 5) for n in range(9)]
    for slot in (8, 0, 6, 3, 5, 2, 7, 1):
        slots.give(slot)
    assert lines[4].slot == 4, "still busy"
    taken = [take(slots, LONG).slot for _ in range(4)]
    assert sorted([*taken, 4]) == list(range(min(*taken, 4), min(*taken, 4) + 5))


def test_a_little_in_common_is_not_worth_a_slot() -> None:
    slots = slots_of(2)
    slots.give(run(slots, LONG[:40]).slot)
    assert take(slots, [*LONG[: MIN_KEPT_TOKENS - 1], 7, 7]) == Grant(1)


def test_a_slot_that_loses_little_is_cut_in_place() -> None:
    slots = slots_of(2)
    slots.give(run(slots, LONG[:100]).slot)
    assert take(slots, [*LONG[:90], 7, 7]) == Grant(0, 90)


def test_a_slot_that_would_lose_much_is_copied_while_another_is_free() -> None:
    slots = slots_of(2)
    slots.give(run(slots, LONG).slot)
    assert take(slots, [*LONG[:100], 7]) == Grant(1, 100, source=0)
    assert take(slots, [*LONG[:90], 7]) == Grant(0, 90), "no other is left"


def test_a_running_sequence_is_copied_as_far_as_it_is_computed() -> None:
    slots = slots_of(2)
    run(slots, LONG, decoded=MIN_COPIED_TOKENS)
    assert take(slots, LONG) == Grant(1, MIN_COPIED_TOKENS, source=0)
    slots = slots_of(2)
    run(slots, LONG, decoded=MIN_COPIED_TOKENS - 1)
    assert take(slots, LONG) == Grant(1)


def test_the_last_token_is_always_computed() -> None:
    slots = slots_of(1)
    slots.give(run(slots, LONG).slot)
    assert take(slots, LONG) == Grant(0, len(LONG) - 1)


def test_a_cache_that_forgot_what_the_next_token_looks_at_is_of_no_use() -> None:
    slots = slots_of(1, back=0)
    slots.give(run(slots, LONG).slot)
    assert take(slots, LONG) == Grant(0)


def test_an_exact_sequence_keeps_whole_chunks_of_a_prompt_only() -> None:
    chunks = 3 * EXACT_CHUNK_TOKENS
    slots = slots_of(1, exact=True)
    slots.give(run(slots, LONG[: chunks + 50], prompt=chunks + 20).slot)
    assert take(slots, LONG) == Grant(0, chunks)
    slots = slots_of(1, exact=True)
    slots.give(run(slots, LONG[: chunks + 50], prompt=chunks - 1).slot)
    assert take(slots, LONG) == Grant(0, chunks - EXACT_CHUNK_TOKENS), "answers are made token by token"
    slots = slots_of(1, exact=True)
    slots.give(run(slots, LONG, decoded=EXACT_CHUNK_TOKENS + 3).slot)
    assert take(slots, LONG) == Grant(0, EXACT_CHUNK_TOKENS), "and not all of a prompt need be there"
    slots = slots_of(1, exact=True, forgot=True)
    slots.give(run(slots, LONG).slot)
    assert take(slots, LONG) == Grant(0), "positions that were overwritten lie elsewhere"


def test_slots_may_be_numbered_from_anywhere() -> None:
    slots = slots_of(2, exact=True, first=4)
    assert [run(slots, [n]).slot for n in range(2)] == [4, 5]
    slots.give(5)
    assert take(slots, LONG) == Grant(5) and slots.free == 0


def test_nobody_learns_by_the_cache_what_others_asked() -> None:
    slots = slots_of(2)
    line = Line(1, slots.take(LONG, len(LONG), "anna").slot, False, len(LONG), LONG, len(LONG), owner="anna")
    slots.enter(line)
    slots.give(line.slot)
    assert slots.take(LONG, len(LONG), "bert") == Grant(1)
    assert slots.take(LONG, len(LONG), "anna") == Grant(0, len(LONG) - 1)


def test_a_cleared_slot_holds_nothing() -> None:
    slots = slots_of(1)
    slots.clear(run(slots, LONG).slot)
    assert slots.free == 1 and take(slots, LONG) == Grant(0)


def test_fillers_stand_in_narrow_gaps_only() -> None:
    slots = slots_of(30)
    lines = [run(slots, [n] * (n + 1)) for n in range(30)]
    for line in lines[1:]:
        slots.give(line.slot)
    far = 2 + MAX_GAP_SLOTS + 2
    assert slots.fillers([0, 2, far]) == [(1, 2)]
    assert slots.fillers([0]) == [] and slots.fillers([0, 1]) == []
