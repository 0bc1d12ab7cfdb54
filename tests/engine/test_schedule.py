"""Which tokens go into the next step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshd.engine.schedule import EXACT_CHUNK_TOKENS, Feed, Line, Schedule, shares


def line(id: int, tokens: int, *, exact: bool = False, prompt: int | None = None) -> Line:
    return Line(id, slot=id, exact=exact, prompt_tokens=tokens if prompt is None else prompt, tokens=[7] * tokens)


def schedule_of(chunk_tokens: int) -> Schedule:
    return Schedule(lambda running: chunk_tokens)


def step(schedule: Schedule) -> list[Feed]:
    feeds = schedule.next_step()
    for feed in feeds:
        schedule.advance(feed)
    return feeds


def test_a_long_prompt_goes_in_chunks_beside_the_running_answers() -> None:
    schedule = schedule_of(10)
    schedule.add(line(1, 1))
    schedule.add(line(2, 25))
    sizes = []
    for _ in range(3):
        feeds = step(schedule)
        sizes.append({feed.id: (len(feed.tokens), feed.complete) for feed in feeds})
        schedule.line(1).tokens.append(7)
    assert sizes == [
        {1: (1, True), 2: (10, False)},
        {1: (1, True), 2: (10, False)},
        {1: (1, True), 2: (5, True)},
    ]


def test_prompts_share_a_step_so_that_a_short_one_need_not_wait_for_a_long_one() -> None:
    schedule = schedule_of(10)
    schedule.add(line(1, 500))
    schedule.add(line(2, 7))
    assert [(f.id, len(f.tokens)) for f in step(schedule)] == [(1, 5), (2, 5)]
    assert [(f.id, len(f.tokens), f.complete) for f in step(schedule)] == [(1, 8, False), (2, 2, True)]


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(0, 200))
def test_shares_are_fair_and_use_all_the_room(wanted: list[int], room: int) -> None:
    given_ = shares(wanted, room)
    assert sum(given_) == min(room, sum(wanted))
    assert all(0 <= part <= want for part, want in zip(given_, wanted, strict=True))
    short = [part for part, want in zip(given_, wanted, strict=True) if part < want]
    assert not short or max(given_) - min(short) <= 1, "who got less than asked for got as much as anybody"


def test_a_step_is_in_order_of_slots_whoever_came_first() -> None:
    """Out of order, llama.cpp computes each run of neighbouring slots by itself, at the cost of a step each."""
    schedule = schedule_of(10)
    for id, slot in ((1, 3), (2, 0), (3, 2), (4, 1)):
        schedule.add(Line(id, slot, exact=False, prompt_tokens=1, tokens=[7] * (5 if id == 2 else 1)))
    assert [feed.slot for feed in schedule.next_step()] == [0, 1, 2, 3]


def test_exact_steps_have_shapes_of_their_own_and_take_turns_with_the_others() -> None:
    schedule = schedule_of(256)
    schedule.add(line(1, EXACT_CHUNK_TOKENS + 6, exact=True, prompt=EXACT_CHUNK_TOKENS + 3))
    schedule.add(line(2, 300))
    exact = []
    for _ in range(10):
        feeds = step(schedule)
        ids = {feed.id for feed in feeds}
        assert ids in ({1}, {2}, set())
        exact += [len(f.tokens) for f in feeds if f.id == 1]
    assert exact == [EXACT_CHUNK_TOKENS, 3, 1, 1, 1]


def test_exact_tokens_are_decoded_together_where_company_does_not_matter_and_exact_prompts_never() -> None:
    schedule = schedule_of(256)
    schedule.company_matters = False
    for id in (1, 2):
        schedule.add(line(id, EXACT_CHUNK_TOKENS + 6, exact=True, prompt=EXACT_CHUNK_TOKENS + 3))
    schedule.add(line(3, 300))
    seen = [[(f.id, len(f.tokens), f.logits) for f in step(schedule)] for _ in range(14)]
    alone = [feeds[0] for feeds in seen if len(feeds) == 1 and feeds[0][0] in (1, 2)]
    assert sorted(alone) == [(id, size, True) for id in (1, 2) for size in (3, EXACT_CHUNK_TOKENS)]
    together = [feeds for feeds in seen if len(feeds) == 2]
    assert together == [[(1, 1, True), (2, 1, True)]] * 3, "a replay goes token by token, in company"
    assert all({id for id, _, _ in feeds} <= {3} or 3 not in {id for id, _, _ in feeds} for feeds in seen)


def test_exact_steps_always_ask_for_logits() -> None:
    schedule = schedule_of(256)
    schedule.add(line(1, EXACT_CHUNK_TOKENS * 2, exact=True))
    first, second = step(schedule)[0], step(schedule)[0]
    assert (first.logits, first.complete) == (True, False)
    assert (second.logits, second.complete) == (True, True)


def test_a_held_sequence_is_skipped_until_released() -> None:
    schedule = schedule_of(16)
    schedule.add(line(1, 1))
    schedule.line(1).held = True
    assert step(schedule) == []
    schedule.line(1).held = False
    assert [f.id for f in step(schedule)] == [1]


def test_a_removed_sequence_is_not_fed_again() -> None:
    schedule = schedule_of(16)
    schedule.add(line(1, 200, exact=True))
    schedule.add(line(2, 200))
    step(schedule)
    schedule.remove(1)
    schedule.remove(2)
    schedule.remove(3)
    assert step(schedule) == []


lines = st.lists(st.tuples(st.integers(1, 200), st.integers(0, 200), st.booleans()), min_size=1, max_size=12)


@given(lines, st.integers(16, 128))
def test_every_token_is_fed_once_in_order_and_within_the_budget(
    shapes: list[tuple[int, int, bool]], chunk_tokens: int
) -> None:
    schedule = schedule_of(chunk_tokens)
    for id, (prompt, delivered, exact) in enumerate(shapes):
        pending = list(range(prompt + delivered))
        schedule.add(Line(id, id, exact, prompt, pending))
    fed: dict[int, list[int]] = {id: [] for id in range(len(shapes))}
    steps = 0
    while feeds := step(schedule):
        steps += 1
        assert steps < 10_000
        tokens = sum(len(f.tokens) for f in feeds)
        assert tokens <= max(len(shapes) + chunk_tokens, EXACT_CHUNK_TOKENS)
        assert len(feeds) == 1 or not any(shapes[f.id][2] for f in feeds)
        for feed in feeds:
            assert feed.position == len(fed[feed.id])
            fed[feed.id] += feed.tokens
            assert feed.complete == (len(fed[feed.id]) == sum(shapes[feed.id][:2]))
    assert all(fed[id] == list(range(sum(shape[:2]))) for id, shape in enumerate(shapes))
