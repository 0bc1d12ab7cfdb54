"""The task envelope: only its worker opens it, only as its submitter signed it, only in time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.core.errors import (
    BadInput,
    BadSignature,
    FrameTooLarge,
    MeshError,
    ProtocolViolation,
    TaskExpired,
    WrongRecipient,
)
from meshd.core.ids import AttemptId
from meshd.core.job import TaskKind
from meshd.core.limits import CLOCK_SKEW_S, MAX_TASK_BYTES, TASK_TTL_S
from meshd.wire.codec import encode
from meshd.wire.keys import NodeKey
from meshd.wire.receipt import request_hash
from meshd.wire.secretstream import StreamKeys
from meshd.wire.signing import Domain
from meshd.wire.task import open_task, seal_task
from meshd.wire.typed import to_wire
from tests.wire.samples import KEYS, NOW_S, STRANGER, SUBMITTER, WORKER, task_of

DATA = seal_task(task_of(3), SUBMITTER, KEYS)


def resigned(unsigned: bytes, key: NodeKey = SUBMITTER) -> bytes:
    return unsigned + key.sign(Domain.TASK, unsigned).signature


@pytest.mark.parametrize("delivered", [0, 1, 3, 1000])
def test_comes_back_equal(delivered: int) -> None:
    task = task_of(delivered)
    data = seal_task(task, SUBMITTER, KEYS)
    opened = open_task(data, WORKER, NOW_S)
    assert opened.task == task
    assert (opened.keys.up, opened.keys.down) == (KEYS.up, KEYS.down)
    assert opened.request_hash == request_hash(data)


def test_a_noop_comes_back() -> None:
    task = task_of(kind=TaskKind.NOOP)
    assert open_task(seal_task(task, SUBMITTER, KEYS), WORKER, NOW_S).task == task


def test_a_hundred_thousand_delivered_tokens_fit() -> None:
    task = task_of(100_000)
    data = seal_task(task, SUBMITTER, KEYS)
    assert len(data) < 1_500_000
    assert open_task(data, WORKER, NOW_S).task == task


def test_the_prompt_is_not_readable_on_the_way() -> None:
    assert b"geht es dir" not in DATA
    assert KEYS.up not in DATA


def test_two_sealings_of_one_task_differ() -> None:
    assert seal_task(task_of(), SUBMITTER, KEYS) != seal_task(task_of(), SUBMITTER, KEYS)


def test_another_worker_is_told_so() -> None:
    with pytest.raises(WrongRecipient):
        open_task(DATA, STRANGER, NOW_S)


def test_times() -> None:
    data = seal_task(task_of(expires_s=NOW_S), SUBMITTER, KEYS)
    open_task(data, WORKER, NOW_S + CLOCK_SKEW_S)
    open_task(data, WORKER, NOW_S - TASK_TTL_S - CLOCK_SKEW_S)
    for now_s in (NOW_S + CLOCK_SKEW_S + 0.1, NOW_S - TASK_TTL_S - CLOCK_SKEW_S - 0.1):
        with pytest.raises(TaskExpired):
            open_task(data, WORKER, now_s)


def test_every_changed_byte_is_noticed() -> None:
    for at in range(len(DATA)):
        changed = bytearray(DATA)
        changed[at] ^= 0x01
        with pytest.raises(MeshError):
            open_task(bytes(changed), WORKER, NOW_S)


def test_every_truncation_is_noticed() -> None:
    for size in range(len(DATA)):
        with pytest.raises(ProtocolViolation):
            open_task(DATA[:size], WORKER, NOW_S)


def test_only_the_submitter_signs() -> None:
    with pytest.raises(BadInput):
        seal_task(task_of(), STRANGER, KEYS)
    with pytest.raises(BadSignature):
        open_task(resigned(DATA[:-64], STRANGER), WORKER, NOW_S)


def test_a_sealed_body_cannot_be_lifted_into_another_task() -> None:
    size = int.from_bytes(DATA[:2], "big")
    sealed = DATA[2 + size : -64]
    header = task_of().header
    for stolen in (replace(header, submitter=STRANGER.node), replace(header, attempt=AttemptId(header.attempt.job, 9))):
        packed = encode(to_wire(stolen))
        key = STRANGER if stolen.submitter == STRANGER.node else SUBMITTER
        with pytest.raises(ProtocolViolation, match="another header"):
            open_task(resigned(len(packed).to_bytes(2, "big") + packed + sealed, key), WORKER, NOW_S)


def test_oversize() -> None:
    with pytest.raises(FrameTooLarge):
        open_task(bytes(MAX_TASK_BYTES + 1), WORKER, NOW_S)


def test_stream_keys_are_two_and_not_shown() -> None:
    assert "u" * 32 not in repr(KEYS)
    for up, down in ((b"x" * 32, b"x" * 32), (b"x", b"y" * 32)):
        with pytest.raises(BadInput):
            StreamKeys(up=up, down=down)
