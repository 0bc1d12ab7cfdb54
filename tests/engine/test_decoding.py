"""Admission, stops, limits, windows and llama_decode's refusals, on a model that counts."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.core.generation import Generation, Prompt, Sampling
from meshd.engine.decoding import WINDOW_TOKENS, ContextLost, Decoding, Prepared
from meshd.engine.sampling import Logits
from meshd.engine.schedule import Feed

END = 99
VOCABULARY = 100


class Counting:
    """After token n comes n + 1, and ``END`` ends; each token's piece is ``<n>``. Knows what each slot holds."""

    def __init__(self, context_tokens: int = 64) -> None:
        self.context_tokens = context_tokens
        self.vocab_tokens = VOCABULARY
        self.rewinds = True
        self.slots: dict[int, list[int]] = {}
        self.status = 0
        self.full_slots: set[int] = set()
        self.wrap = False
        self.batches: list[list[int]] = []
        self._rows: list[int] = []

    def decode(self, feeds: Sequence[Feed]) -> int:
        if self.status:
            return self.status
        if self.full_slots & {feed.slot for feed in feeds}:
            return 1
        self._rows = []
        self.batches.append([feed.slot for feed in feeds])
        for feed in feeds:
            held = self.slots.setdefault(feed.slot, [])
            assert len(held) == feed.position, "every token goes right behind what the slot holds"
            for token in feed.tokens:
                held.append(token)
                self._rows.append(self.following(held))
        return 0

    def following(self, held: list[int]) -> int:
        return (held[-1] + 1) % 50 if self.wrap else held[-1] + 1

    def logits(self, row: int) -> Logits:
        values = np.zeros(VOCABULARY, dtype=np.float32)
        values[self._rows[row]] = 1
        return values

    def keep(self, slot: int, tokens: int) -> bool:
        self.slots[slot] = self.slots.get(slot, [])[:tokens]
        return True

    def copy(self, source: int, target: int) -> None:
        self.slots[target] = list(self.slots[source])

    def reaches_back(self, slot: int, tokens: int) -> bool:
        return True

    def untouched(self, slot: int) -> bool:
        return True

    def piece(self, token: int) -> bytes:
        return f"<{token}>".encode()

    def text(self, token: int) -> bytes:
        return self.piece(token)

    def ends(self, token: int) -> bool:
        return token == END


def decoding(
    model: Counting, prompt: tuple[int, ...] = (1, 2, 3), slots: int = 4, stop: tuple[str, ...] = ()
) -> Decoding:
    return Decoding(model, lambda _: Prepared(list(prompt), stop), slots=slots, prefill_chunk_tokens=16)


def ask(**fields: Any) -> Generation:
    return Generation(Prompt("x"), Sampling(temperature=0), **fields)


def run(work: Decoding, id: int | None = None) -> list[list[Any]]:
    messages = []
    while feeds := work.next_step():
        messages += [m for m in work.step(feeds) if id in (None, m[1])]
    return messages


def ids(messages: list[list[Any]]) -> list[int]:
    return [token for m in messages if m[0] == "tokens" for token, _ in m[3]]


def test_counts_up_to_max_tokens() -> None:
    work = decoding(Counting())
    assert work.start(1, ask(max_tokens=3), []) == [["started", 1, 3, [], 0, ""]]
    messages = run(work)
    assert ids(messages) == [4, 5, 6]
    assert [m[2] for m in messages if m[0] == "tokens"] == [0, 1, 2]
    assert messages[-1] == ["finished", 1, "length"]
    assert not work.busy


def test_without_max_tokens_the_context_is_filled() -> None:
    work = decoding(Counting(context_tokens=10))
    work.start(1, ask(), [])
    messages = run(work)
    assert ids(messages) == list(range(4, 11))
    assert messages[-1] == ["finished", 1, "length"]


def test_the_end_token_is_not_delivered() -> None:
    work = decoding(Counting(), prompt=(96,))
    work.start(1, ask(), [])
    assert run(work) == [["tokens", 1, 0, [[97, b"<97>"]]], ["tokens", 1, 1, [[98, b"<98>"]]], ["finished", 1, "stop"]]


def test_a_stop_string_across_tokens_ends_after_the_token_that_completes_it() -> None:
    work = decoding(Counting())
    work.start(1, ask(stop=("5><6",)), [])
    messages = run(work)
    assert ids(messages) == [4, 5, 6]
    assert messages[-1] == ["finished", 1, "stop"]


def test_the_templates_implied_stop_counts_and_is_told() -> None:
    work = decoding(Counting(), stop=("<6>",))
    assert work.start(1, ask(), []) == [["started", 1, 3, ["<6>"], 0, ""]]
    assert ids(run(work)) == [4, 5, 6]


def test_a_stop_string_begun_before_the_resume_is_still_seen() -> None:
    work = decoding(Counting())
    work.start(1, ask(stop=("5><6",)), [4, 5])
    messages = run(work)
    assert messages == [["tokens", 1, 2, [[6, b"<6>"]]], ["finished", 1, "stop"]]


@pytest.mark.parametrize(
    ("fields", "delivered", "reason"),
    [({"max_tokens": 2}, [4, 5], "length"), ({"stop": ("<5>",)}, [4, 5], "stop"), ({}, [4, END], "stop")],
)
def test_an_answer_that_was_complete_finishes_at_once(
    fields: dict[str, Any], delivered: list[int], reason: str
) -> None:
    work = decoding(Counting())
    assert work.start(1, ask(**fields), delivered) == [["started", 1, 3, [], 0, ""], ["finished", 1, reason]]
    assert not work.busy


@pytest.mark.parametrize("token", [VOCABULARY, 2**32 - 1])
def test_a_delivered_token_outside_the_vocabulary_is_refused(token: int) -> None:
    """They come from another machine, and llama.cpp takes its tables at their word."""
    work = decoding(Counting())
    ((kind, _, code, *_),) = work.start(1, ask(), [4, token])
    assert (kind, code) == ("refused", "invalid_request") and not work.busy


@pytest.mark.parametrize("exact", [False, True])
def test_resuming_goes_on_where_it_stopped(exact: bool) -> None:
    work = decoding(Counting())
    work.start(1, ask(max_tokens=6, exact=exact), [4, 5, 6])
    messages = run(work)
    assert ids(messages) == [7, 8, 9]
    assert messages[0][2] == 3


def test_refusals_take_no_slot() -> None:
    work = decoding(Counting(context_tokens=8), prompt=(1, 2, 3, 4), slots=1)
    assert work.start(1, ask(), [5] * 5)[0][2] == "context_length_exceeded"
    assert work.start(1, ask(), [VOCABULARY])[0][2] == "invalid_request"
    assert work.start(1, ask(), [-1])[0][2] == "invalid_request"
    assert work.start(2, ask(), []) == [["started", 2, 4, [], 0, ""]]
    assert work.start(3, ask(), [])[0][2] == "mesh_overloaded"
    assert decoding(Counting(), prompt=()).start(1, ask(), [])[0][2] == "invalid_request"
    assert decoding(Counting(4), prompt=(1, 2, 3, 4)).start(1, ask(), [])[0][2] == "context_length_exceeded"


def test_cancelling_frees_the_slot_before_the_next_step() -> None:
    model = Counting()
    work = decoding(model, slots=1)
    work.start(1, ask(), [])
    work.step(work.next_step())
    work.cancel(1)
    work.cancel(1)
    assert work.next_step() == []
    assert work.start(2, ask(max_tokens=1), [])[0][0] == "started"
    assert ids(run(work)) == [4]


def test_a_full_cache_costs_only_the_sequence_that_found_no_room() -> None:
    model = Counting()
    work = decoding(model)
    work.start(1, ask(max_tokens=4), [])
    work.start(2, ask(max_tokens=4), [])
    work.step(work.next_step())
    model.full_slots = {1}
    messages = run(work)
    assert [m[:3] for m in messages if m[0] == "refused"] == [["refused", 2, "mesh_overloaded"]]
    assert ids([m for m in messages if m[1] == 1]) == [5, 6, 7]
    assert not work.busy


def test_an_invalid_batch_costs_the_sequence_and_a_broken_context_everything() -> None:
    model = Counting()
    work = decoding(model)
    work.start(1, ask(), [])
    model.status = -1
    assert run(work)[0][:3] == ["refused", 1, "engine_failed"]
    work.start(2, ask(), [])
    model.status = -3
    with pytest.raises(ContextLost):
        work.step(work.next_step())


def test_a_lagging_reader_holds_only_its_own_sequence() -> None:
    model = Counting(context_tokens=3 * WINDOW_TOKENS)
    model.wrap = True
    work = decoding(model)
    work.start(1, ask(), [])
    assert len(ids(run(work, 1))) == WINDOW_TOKENS
    work.start(2, ask(max_tokens=5), [])
    assert len(ids(run(work, 2))) == 5
    work.acknowledge(1, 10)
    assert len(ids(run(work, 1))) == 10
    assert work.busy


class Remembering(Counting):
    """The next token depends on all that its slot holds: a cache that kept a wrong token would show."""

    def following(self, held: list[int]) -> int:
        return zlib.crc32(bytes(held)) % 90


def alone(prompt: tuple[int, ...], count: int) -> list[int]:
    """What the model answers with a cache of its own."""
    work = decoding(Remembering(512), prompt)
    work.start(1, ask(max_tokens=count), [])
    return ids(run(work))


def talks(model: Counting, prompts: dict[int, tuple[int, ...]], slots: int) -> Decoding:
    """Work in which generation ``max_tokens`` n has prompt ``prompts[n]``."""
    return Decoding(model, lambda g: Prepared(list(prompts[g.max_tokens or 0])), slots=slots, prefill_chunk_tokens=16)


def test_the_next_turn_of_a_chat_computes_only_what_is_new() -> None:
    first = tuple(range(1, 41))
    answer = alone(first, 5)
    second = (*first, *answer, 50, 51, 52)
    work = talks(Remembering(128), {5: first, 6: second}, slots=2)
    work.start(1, ask(max_tokens=5), [])
    assert ids(run(work)) == answer
    # The last token that was drawn never went through the model.
    assert work.start(2, ask(max_tokens=6), []) == [["started", 2, 48, [], 44, ""]]
    fed = work.next_step()
    assert [len(feed.tokens) for feed in fed] == [4]
    assert ids([*work.step(fed), *run(work)]) == alone(second, 6)


def test_a_running_answers_prompt_is_copied_for_the_next_of_the_same() -> None:
    prompt = tuple(n % 90 for n in range(100))
    model = Remembering(256)
    work = talks(model, {7: prompt, 8: prompt}, slots=3)
    work.start(1, ask(max_tokens=7), [])
    for _ in range(8):
        work.step(work.next_step())
    assert work.start(2, ask(max_tokens=8), [])[0][4] == 99, "all but the last token"
    assert ids(run(work, 2)) == alone(prompt, 8)


def test_a_gap_between_busy_slots_is_filled_and_what_it_holds_stays() -> None:
    prompt, other = tuple(range(1, 31)), tuple(range(31, 61))
    model = Remembering(256)
    work = talks(model, {9: (61, 62), 4: prompt, 10: (63, 64), 5: prompt + other}, slots=3)
    work.start(1, ask(max_tokens=9), [])
    work.start(2, ask(max_tokens=4), [])
    work.start(3, ask(max_tokens=10), [])
    messages = [m for _ in range(6) for m in work.step(work.next_step())]
    assert ["finished", 2, "length"] in messages
    model.batches.clear()
    work.step(work.next_step())
    assert model.batches == [[0, 1, 2]], "the idle slot in the middle takes part"
    assert len(model.slots[1]) == 33, "and is as it was afterwards"
    assert work.start(4, ask(max_tokens=5), [])[0][4] == 30
    assert ids(run(work, 4)) == alone(prompt + other, 5)


def test_a_model_that_cannot_rewind_gets_no_fillers() -> None:
    model = Remembering(256)
    model.rewinds = False
    work = talks(model, {9: (61, 62), 4: (1, 2), 10: (63, 64)}, slots=3)
    for id, count in ((1, 9), (2, 4), (3, 10)):
        work.start(id, ask(max_tokens=count), [])
    run(work)
    assert [0, 2] in model.batches and [0, 1, 2] in model.batches


chats = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 70), st.integers(1, 6), st.booleans(), st.integers(0, 9)),
    min_size=1,
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(chats)
def test_whatever_was_cached_the_answers_are_those_of_an_empty_cache(
    asked: list[tuple[int, int, int, bool, int]],
) -> None:
    """Prompts of four families that begin alike, over three slots, some cancelled on the way."""
    families = [tuple((n * (family + 3)) % 90 for n in range(70)) for family in range(4)]
    model = Remembering(512)
    prompts: dict[int, tuple[int, ...]] = {}
    work = Decoding(model, lambda g: Prepared(list(prompts[int(g.stop[0])])), slots=3, prefill_chunk_tokens=16)
    got: dict[int, list[int]] = {}
    cancelled = set()
    for id, (family, length, count, cancel, steps) in enumerate(asked, 1000):
        prompts[id] = (*families[family][:length], id % 90)
        if work.start(id, ask(max_tokens=count, stop=(str(id),)), [])[0][0] == "refused":
            continue
        got[id] = []
        for _ in range(steps):
            if feeds := work.next_step():
                for message in work.step(feeds):
                    got.setdefault(message[1], []).extend(ids([message]))
        if cancel:
            work.cancel(id)
            cancelled.add(id)
    while feeds := work.next_step():
        for message in work.step(feeds):
            got[message[1]].extend(ids([message]))
    for id, tokens in got.items():
        whole = alone(prompts[id], asked[id - 1000][2])
        assert tokens == whole[: len(tokens)] and (id in cancelled or tokens == whole)
