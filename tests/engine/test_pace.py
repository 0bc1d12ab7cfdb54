"""How much of the prompts a step may hold, from what steps cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshd.engine.pace import ALONE_STEP_S, MIN_CHUNK_TOKENS, STALL, Pace
from meshd.engine.schedule import Feed


def feeds(*sizes: int) -> list[Feed]:
    return [Feed(n, n, 0, (1,) * size, True, True) for n, size in enumerate(sizes)]


def test_unmeasured_it_is_the_whole_chunk() -> None:
    assert Pace(256).room_tokens(0) == Pace(256).room_tokens(3) == 256


def test_alone_a_prompt_fills_half_a_second() -> None:
    pace = Pace(256)
    pace.note(feeds(100), 1.0)
    assert pace.room_tokens(0) == ALONE_STEP_S * 100
    pace = Pace(256)
    pace.note(feeds(100), 0.01)
    assert pace.room_tokens(0) == 256


@given(st.floats(0.001, 2), st.floats(0.0001, 0.1), st.integers(1, 16))
def test_beside_answers_a_step_settles_within_the_stall(plain_s: float, token_s: float, running: int) -> None:
    """Whatever a plain step and a token of a prompt cost: after a few steps the mixed one is as long as it may be."""
    pace = Pace(4096)
    pace.note(feeds(*[1] * running), plain_s)
    taken_s = 0.0
    for _ in range(60):
        room = pace.room_tokens(running)
        taken_s = plain_s + room * token_s
        pace.note(feeds(*[1] * running, room), taken_s)
    at_least_s = plain_s + MIN_CHUNK_TOKENS * token_s
    assert taken_s <= max(STALL * plain_s + token_s, at_least_s) * 1.01
    assert pace.room_tokens(running) >= min(4096, int((STALL - 1) * plain_s / token_s) - 1) or taken_s <= at_least_s


def test_slow_machines_still_go_on() -> None:
    pace = Pace(256)
    pace.note(feeds(1), 0.001)
    pace.note(feeds(1, 50), 30.0)
    assert pace.room_tokens(1) == MIN_CHUNK_TOKENS
