"""Frames: every message comes back, tokens are exact, the secret stream tells order and end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.core import limits
from meshd.core.errors import BadInput, FrameTooLarge, ProtocolViolation
from meshd.core.generation import Alternative, FinishReason, Opening, Score, Token
from meshd.core.task import DeclineReason, EndReason
from meshd.wire import frames
from meshd.wire.frames import SealedReader, SealedWriter
from meshd.wire.protocols import ControlFrame, Sealed
from meshd.wire.receipt import MAX_RECEIPT_BYTES, sign_receipt
from meshd.wire.secretstream import OVERHEAD_BYTES, pull_stream, push_stream
from meshd.wire.tokens import pack_tokens, unpack_tokens
from tests.wire.samples import DIGEST, WORKER, receipt_of, tokens_of

KEY = b"k" * 32
RECEIPT = sign_receipt(receipt_of(), WORKER)
CONTROL = [
    frames.Hello(1.5, "0.1.0", 3, 4, (b"ad",)),
    frames.Ping(2**63 - 1),
    frames.Ads((b"a", b"b")),
    frames.Bye("going down"),
]
SCORED = tuple(
    Token(i, 7 + i, b"x", Score(-0.25, (Alternative(8, b"y", -1.5), Alternative(9, b"\xff", -2.0)))) for i in range(3)
)
SEALED = [
    frames.Loading(0.5),
    frames.Tokens(SCORED),
    frames.Started(Opening(12, ("<end>",)), DIGEST, "gemma"),
    frames.Started(Opening(0), None, ""),
    frames.Tokens(tokens_of(1, 7)),
    frames.Tokens(tokens_of(100, 3)),
    frames.Tokens((Token(0, 2**32 - 1, b""), Token(1, 0, b"\xff\xfe"))),
    frames.Heartbeat(),
    frames.Finished(FinishReason.LENGTH, RECEIPT),
    frames.Ended(EndReason.DRAINING, "asked to", RECEIPT),
    frames.Ended(EndReason.ENGINE_FAILED),
    frames.Ended(EndReason.BAD_INPUT, "no", None, "response_format"),
    frames.Cancel(),
    frames.Renew(),
]
DECLINE = frames.Decline(DeclineReason.BUSY, 0.5, "4 of 4 slots")


@pytest.mark.parametrize("message", CONTROL)
def test_control_comes_back(message: frames.ControlMessage) -> None:
    assert frames.decode_control(*frames.encode_control(message)) == message


@pytest.mark.parametrize("message", SEALED)
def test_sealed_comes_back(message: frames.SealedMessage) -> None:
    assert frames.decode_sealed(frames.encode_sealed(message)) == message


def test_every_numbered_frame_has_a_message() -> None:
    assert {frames.encode_control(m)[0] for m in CONTROL} == set(ControlFrame)
    assert {frames.encode_sealed(m)[0] for m in SEALED} == set(Sealed)


def test_decline_comes_back() -> None:
    assert frames.decode_decline(frames.encode_decline(DECLINE)) == DECLINE


TOKENS = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=20)), max_size=30)


@given(st.integers(0, 1000), TOKENS)
def test_any_run_of_tokens_comes_back(first: int, parts: list[tuple[int, bytes]]) -> None:
    run = tuple(Token(first + i, token, piece) for i, (token, piece) in enumerate(parts))
    assert unpack_tokens(pack_tokens(run)) == run


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_a_run(data: bytes) -> None:
    try:
        run = unpack_tokens(data)
    except ProtocolViolation:
        return
    assert pack_tokens(run) == data


@pytest.mark.parametrize(
    "run",
    [
        (Token(0, 1, b""), Token(2, 1, b"")),
        (Token(0, 2**32, b""),),
        (Token(0, -1, b""),),
        (Token(0, 1, bytes(65_536)),),
    ],
)
def test_what_does_not_fit_a_run_is_the_callers_fault(run: tuple[Token, ...]) -> None:
    with pytest.raises(BadInput):
        pack_tokens(run)


@pytest.mark.parametrize("count", [2**32 - 1, limits.MAX_OUTPUT_TOKENS + 1, 1000])
def test_a_run_that_claims_more_than_it_holds(count: int) -> None:
    with pytest.raises(ProtocolViolation):
        unpack_tokens(bytes(4) + count.to_bytes(4, "big") + bytes(100))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\xff",
        bytes([Sealed.TOKENS]),
        bytes([Sealed.TOKENS]) + bytes(8),
        bytes([Sealed.CANCEL]) + b"\x80",
        bytes([Sealed.STARTED]) + b"\x80",
        bytes([Sealed.FINISHED, 0x91]),
    ],
)
def test_malformed_sealed_messages_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        frames.decode_sealed(data)


def test_bounds() -> None:
    with pytest.raises(BadInput):
        frames.Hello(1.0, "0", ads=(b"",) * (frames.MAX_ADS_PER_FRAME + 1))
    with pytest.raises(BadInput):
        frames.encode_sealed(frames.Tokens(tokens_of(10_000)))
    with pytest.raises(FrameTooLarge):
        frames.decode_sealed(bytes(limits.MAX_TASK_FRAME_BYTES))
    with pytest.raises(FrameTooLarge):
        frames.decode_control(ControlFrame.ADS, bytes(limits.MAX_CONTROL_FRAME_BYTES + 1))
    huge = frames.encode_sealed(frames.Finished(FinishReason.STOP, bytes(MAX_RECEIPT_BYTES + 1)))
    with pytest.raises(ProtocolViolation):
        frames.decode_sealed(huge)
    with pytest.raises(ProtocolViolation):
        frames.decode_control(99, b"\x80")
    full = frames.Hello(1.0, "0" * 1000, ads=(bytes(limits.MAX_AD_BYTES),) * frames.MAX_ADS_PER_FRAME)
    assert len(frames.encode_control(full)[1]) <= limits.MAX_CONTROL_FRAME_BYTES


def test_the_largest_sealed_message_fits_a_frame_when_encrypted() -> None:
    assert frames.MAX_SEALED_BYTES + OVERHEAD_BYTES <= limits.MAX_TASK_FRAME_BYTES


# -- the secret stream


def pair() -> tuple[SealedWriter, SealedReader]:
    return SealedWriter(push_stream(KEY)), SealedReader(pull_stream(KEY))


def test_a_whole_conversation_comes_through() -> None:
    writer, reader = pair()
    last = frames.Finished(FinishReason.LENGTH, RECEIPT)
    said = [*(m for m in SEALED if not isinstance(m, frames.Finished | frames.Ended)), last]
    assert [reader.open(writer.seal(m)) for m in said] == said


def test_loss_doubling_order_and_change_are_noticed() -> None:
    for spoil in (
        lambda p: [p[1], p[0]],
        lambda p: [p[0], p[0]],
        lambda p: [p[0], p[2]],
        lambda p: [p[0], p[1][:-1]],
        lambda p: [p[0], p[1] + b"\0"],
        lambda p: [p[0], b""],
        lambda p: [b""],
        lambda p: [p[0][:-1]],
    ):
        writer, reader = pair()
        payloads = [writer.seal(frames.Tokens(tokens_of(1, i))) for i in range(3)]
        with pytest.raises(ProtocolViolation):
            for payload in spoil(payloads):
                reader.open(payload)


def test_another_key_opens_nothing() -> None:
    with pytest.raises(ProtocolViolation):
        SealedReader(pull_stream(b"x" * 32)).open(SealedWriter(push_stream(KEY)).seal(frames.Heartbeat()))


def test_nothing_follows_the_last_word() -> None:
    writer, reader = pair()
    reader.open(writer.seal(frames.Finished(FinishReason.LENGTH, RECEIPT)))
    with pytest.raises(ProtocolViolation):
        reader.open(b"x" * 40)
    with pytest.raises(ValueError, match="ended"):
        writer.seal(frames.Heartbeat())


@pytest.mark.parametrize(
    ("message", "final"), [(frames.Heartbeat(), True), (frames.Finished(FinishReason.LENGTH, RECEIPT), False)]
)
def test_last_word_and_end_of_stream_coincide(message: frames.SealedMessage, final: bool) -> None:
    payload = push_stream(KEY).seal(frames.encode_sealed(message), final=final)
    with pytest.raises(ProtocolViolation):
        SealedReader(pull_stream(KEY)).open(payload)


def test_a_stream_that_just_stops_never_looks_finished() -> None:
    push, pull = push_stream(KEY), pull_stream(KEY)
    pull.open(push.seal(b"a"))
    assert not pull.finished
    pull.open(push.seal(b"b", final=True))
    assert pull.finished
