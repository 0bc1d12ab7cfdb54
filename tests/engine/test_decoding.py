"""Admission, stops, limits, windows and llama_decode's refusals, on a model that counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

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
        self.slots: dict[int, int] = {}
        self.status = 0
        self.full_slots: set[int] = set()
        self.wrap = False
        self._rows: list[int] = []

    def decode(self, feeds: Sequence[Feed]) -> int:
        if self.status:
            return self.status
        if self.full_slots & {feed.slot for feed in feeds}:
            return 1
        self._rows = [token for feed in feeds for token in feed.tokens]
        for feed in feeds:
            assert self.slots.get(feed.slot, 0) == feed.position
            self.slots[feed.slot] = feed.position + len(feed.tokens)
        return 0

    def logits(self, row: int) -> Logits:
        values = np.zeros(VOCABULARY, dtype=np.float32)
        following = self._rows[row] + 1
        values[following % 50 if self.wrap else following] = 1
        return values

    def free(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def piece(self, token: int) -> bytes:
        return f"<{token}>".encode()

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
    assert work.start(1, ask(max_tokens=3), []) == [["started", 1, 3, []]]
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
    assert work.start(1, ask(), []) == [["started", 1, 3, ["<6>"]]]
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
    assert work.start(1, ask(**fields), delivered) == [["started", 1, 3, []], ["finished", 1, reason]]
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
    assert work.start(2, ask(), []) == [["started", 2, 4, []]]
    assert work.start(3, ask(), [])[0][2] == "mesh_overloaded"
    assert decoding(Counting(), prompt=()).start(1, ask(), [])[0][2] == "invalid_request"
    assert decoding(Counting(4), prompt=(1, 2, 3, 4)).start(1, ask(), [])[0][2] == "context_length_exceeded"


def test_cancelling_frees_the_slot_before_the_next_step() -> None:
    model = Counting()
    work = decoding(model, slots=1)
    work.start(1, ask(), [])
    work.step(work.next_step())
    assert model.slots
    work.cancel(1)
    work.cancel(1)
    assert not model.slots
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
