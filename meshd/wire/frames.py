"""Typed messages of the control stream and of task streams, and their bytes.

Control frames and a decline are canonical msgpack. What travels inside a SEALED frame starts with one
byte that says what it is; runs of tokens are packed by hand, for there is one a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from meshd.core import limits
from meshd.core.errors import BadInput, FrameTooLarge, ProtocolViolation
from meshd.core.generation import FinishReason, Opening, Token
from meshd.core.ids import ModelDigest
from meshd.core.task import DeclineReason, EndReason
from meshd.wire.codec import decode, encode
from meshd.wire.protocols import ControlFrame, Sealed
from meshd.wire.receipt import MAX_RECEIPT_BYTES
from meshd.wire.secretstream import PullStream, PushStream
from meshd.wire.tokens import pack_scored, pack_tokens, unpack_scored, unpack_tokens
from meshd.wire.typed import from_wire, to_wire

MAX_ADS_PER_FRAME: Final = 24
"""24 ads of full size stay below MAX_CONTROL_FRAME_BYTES."""

MAX_SEALED_BYTES: Final = limits.MAX_TASK_FRAME_BYTES - 64
"""What fits into a task frame after the secret stream added its own."""

MAX_TEXT: Final = 1000
"""Characters of a reason or detail in words."""


def _text_within(*texts: str) -> None:
    if any(len(t) > MAX_TEXT for t in texts):
        raise BadInput(f"a text in a frame has at most {MAX_TEXT} characters")


def _ads_within(ads: tuple[bytes, ...]) -> None:
    if len(ads) > MAX_ADS_PER_FRAME or any(len(a) > limits.MAX_AD_BYTES for a in ads):
        raise BadInput("too many or too large ads in a frame")


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of either side: what it holds of the organisation's epochs, its wall clock (s), its version,
    and the ads (sealed, see `ads`) that it thinks the other should know, its own first."""

    wall_s: float
    software: str
    policy_epoch: int = 0
    revocation_epoch: int = 0
    ads: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        _text_within(self.software)
        _ads_within(self.ads)
        if self.policy_epoch < 0 or self.revocation_epoch < 0:
            raise BadInput("an epoch is never negative")


@dataclass(frozen=True, slots=True)
class Ping:
    """A sign of life, numbered (0 .. 2^63 - 1). Either side sends its own; nobody answers."""

    nonce: int


@dataclass(frozen=True, slots=True)
class Ads:
    """News: sealed ads, of the sender or of others it heard of."""

    ads: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _ads_within(self.ads)


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender leaves on purpose."""

    reason: str = ""

    def __post_init__(self) -> None:
        _text_within(self.reason)


ControlMessage = Hello | Ping | Ads | Bye


@dataclass(frozen=True, slots=True)
class Decline:
    """The offer is declined; worth asking again after ``retry_after_s`` (0: no such promise)."""

    reason: DeclineReason
    retry_after_s: float = 0.0
    detail: str = ""

    def __post_init__(self) -> None:
        _text_within(self.detail)
        if not 0 <= self.retry_after_s <= 86_400:
            raise BadInput("retry_after_s is between 0 and a day")


@dataclass(frozen=True, slots=True)
class Started:
    """The engine has the prompt. ``digest`` names the model file (None for a no-op)."""

    opening: Opening
    digest: ModelDigest | None
    model: str

    def __post_init__(self) -> None:
        _text_within(self.model)


@dataclass(frozen=True, slots=True)
class Loading:
    """The worker loads the model for this attempt: so much of it is there (0 to 1)."""

    fraction: float

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise BadInput("a fraction is between 0 and 1")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The next tokens of the answer, at least one, numbered without a gap."""

    tokens: tuple[Token, ...]

    def __post_init__(self) -> None:
        if not self.tokens:
            raise BadInput("a frame of tokens holds at least one")

    @property
    def first_index(self) -> int:
        """Index of the first token."""
        return self.tokens[0].index


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Nothing to say, but the attempt runs (Sealed.HEARTBEAT)."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete; ``receipt`` is the worker's signed receipt (see `receipt`)."""

    reason: FinishReason
    receipt: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The attempt ended without a complete answer. ``param``: the field of the request whose fault it is."""

    reason: EndReason
    detail: str = ""
    receipt: bytes | None = None
    param: str = ""

    def __post_init__(self) -> None:
        _text_within(self.detail, self.param)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Submitter to worker: stop, nobody wants the rest."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Submitter to worker: still here, the lease goes on."""


FromWorker = Loading | Started | Tokens | Heartbeat | Finished | Ended
FromSubmitter = Cancel | Renew
SealedMessage = FromWorker | FromSubmitter

_CONTROL: Final[dict[int, type[Any]]] = {
    ControlFrame.HELLO: Hello,
    ControlFrame.HEARTBEAT: Ping,
    ControlFrame.ADS: Ads,
    ControlFrame.BYE: Bye,
}
_SEALED: Final[dict[int, type[Any]]] = {
    Sealed.STARTED: Started,
    Sealed.TOKENS: Tokens,
    Sealed.HEARTBEAT: Heartbeat,
    Sealed.FINISHED: Finished,
    Sealed.ENDED: Ended,
    Sealed.CANCEL: Cancel,
    Sealed.RENEW: Renew,
    Sealed.LOADING: Loading,
}
_KIND: Final[dict[type[Any], int]] = {cls: int(kind) for table in (_CONTROL, _SEALED) for kind, cls in table.items()}
_EMPTY: Final[dict[type[Any], bytes]] = {cls: bytes([_KIND[cls]]) for cls in (Heartbeat, Cancel, Renew)}
_OF_EMPTY: Final[dict[bytes, Any]] = {data: cls() for cls, data in _EMPTY.items()}
_TOKENS_BYTE: Final = bytes([Sealed.TOKENS])
_SCORED_BYTE: Final = bytes([Sealed.SCORED])


def encode_control(message: ControlMessage) -> tuple[int, bytes]:
    """(frame kind, payload) of a control message."""
    return _KIND[type(message)], encode(to_wire(message))


def decode_control(kind: int, payload: bytes) -> ControlMessage:
    """The control message of a frame. Raises FrameTooLarge, ProtocolViolation."""
    message: ControlMessage = _read(_CONTROL, kind, payload, limits.MAX_CONTROL_FRAME_BYTES)
    return message


def encode_decline(message: Decline) -> bytes:
    """The payload of a DECLINE frame. (ACCEPT and OFFER: none, and the task's own bytes.)"""
    return encode(to_wire(message))


def decode_decline(payload: bytes) -> Decline:
    """What a DECLINE frame says. Raises FrameTooLarge, ProtocolViolation."""
    return from_wire(Decline, decode(payload, limits.MAX_TASK_FRAME_BYTES))


def encode_sealed(message: SealedMessage) -> bytes:
    """The bytes of a sealed message, before encryption. BadInput when they would not fit a frame."""
    kind = type(message)
    if isinstance(message, Tokens):
        scored = message.tokens[0].score is not None
        data = _SCORED_BYTE + pack_scored(message.tokens) if scored else _TOKENS_BYTE + pack_tokens(message.tokens)
    elif kind in _EMPTY:
        return _EMPTY[kind]
    else:
        data = bytes([_KIND[kind]]) + encode(to_wire(message))
    if len(data) > MAX_SEALED_BYTES:
        raise BadInput("a sealed message is too large for a frame: send fewer tokens at once")
    return data


def decode_sealed(data: bytes) -> SealedMessage:
    """The sealed message, after decryption. Raises FrameTooLarge, ProtocolViolation."""
    if len(data) > MAX_SEALED_BYTES:
        raise FrameTooLarge("a sealed message is too large for a frame")
    if data[:1] in (_TOKENS_BYTE, _SCORED_BYTE):
        tokens = unpack_tokens(data[1:]) if data[:1] == _TOKENS_BYTE else unpack_scored(data[1:])
        if not tokens:
            raise ProtocolViolation("a frame of tokens holds at least one")
        return Tokens(tokens)
    empty: SealedMessage | None = _OF_EMPTY.get(data)
    if empty is not None:
        return empty
    message: SealedMessage = _read(_SEALED, data[0] if data else 0, data[1:], MAX_SEALED_BYTES)
    receipt = message.receipt if isinstance(message, Finished | Ended) else None
    if receipt is not None and len(receipt) > MAX_RECEIPT_BYTES:
        raise ProtocolViolation("receipt too large")
    return message


def _read(table: dict[int, type[Any]], kind: int, payload: bytes, max_bytes: int) -> Any:
    cls = table.get(kind)
    if cls is None or cls in _EMPTY:
        raise ProtocolViolation(f"unexpected frame kind {kind}")
    return from_wire(cls, decode(payload, max_bytes))


class SealedWriter:
    """Turns messages into the payloads of SEALED frames. The worker's last word is final in the stream as well."""

    def __init__(self, push: PushStream) -> None:
        self._push = push

    def seal(self, message: SealedMessage) -> bytes:
        """The payload for ``message``. Payloads must be sent in the order in which they were sealed."""
        return self._push.seal(encode_sealed(message), final=isinstance(message, Finished | Ended))


class SealedReader:
    """Turns payloads of SEALED frames back into messages."""

    def __init__(self, pull: PullStream) -> None:
        self._pull = pull

    def open(self, payload: bytes) -> SealedMessage:
        """The next message. Raises FrameTooLarge, ProtocolViolation (also when a last word does not end the
        stream, or the stream ends without one); the stream is of no use afterwards."""
        if len(payload) > limits.MAX_TASK_FRAME_BYTES:
            raise FrameTooLarge("a sealed frame is larger than a frame may be")
        message = decode_sealed(self._pull.open(payload))
        if self._pull.finished != isinstance(message, Finished | Ended):
            raise ProtocolViolation("the last word and the end of the stream do not coincide")
        return message
