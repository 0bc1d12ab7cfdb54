"""Ads as bytes: signed by the node they speak of, with that node's membership proof beside them.

Any reader learns the *attested* region and clearance with the offer, before it has ever met the node.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meshd.core import limits
from meshd.core.ad import Ad
from meshd.core.errors import AdExpired, BadInput, ClockWrong, NotMember, ProtocolViolation
from meshd.core.ids import NodeId
from meshd.core.trust import Certificate
from meshd.wire.codec import decode, encode
from meshd.wire.keys import NodeKey, verify_key_of
from meshd.wire.signing import Domain, Signed
from meshd.wire.trust import Chain, check_times, open_chain
from meshd.wire.typed import from_wire, to_wire

CACHED_ADS: Final = 1024
"""The DHT validates the same value on every put and get; a node's table and its neighbours' fit."""


def seal_ad(ad: Ad, key: NodeKey, proof: bytes) -> bytes:
    """The signed bytes of ``ad`` with the node's membership ``proof``.

    Raises BadInput when ``key`` is not the node's own, or the whole exceeds MAX_AD_BYTES (advertise less).
    """
    if key.node != ad.node:
        raise BadInput("only the node itself signs its ad", param="node")
    signed = key.sign(Domain.AD, encode(to_wire(ad)))
    value = encode([signed.payload, signed.signature, proof])
    if len(value) > limits.MAX_AD_BYTES:
        raise BadInput(f"an ad has at most {limits.MAX_AD_BYTES} bytes", param="models", hint="advertise less")
    return value


@dataclass(frozen=True, slots=True)
class _Opened:
    ad: Ad
    chain: Chain


def _open(value: bytes, org_root: bytes) -> _Opened:
    match decode(value, limits.MAX_AD_BYTES):
        case [bytes() as payload, bytes() as signature, bytes() as proof]:
            ad = from_wire(Ad, decode(payload, limits.MAX_AD_BYTES))
        case _:
            raise ProtocolViolation("not an ad")
    try:
        Signed(payload, signature).verify(verify_key_of(ad.node), Domain.AD)
    except BadInput as e:
        raise ProtocolViolation(e.message) from None
    chain = open_chain(proof, org_root)
    if chain.certificate.node != ad.node:
        raise NotMember("the ad shows another node's certificate")
    return _Opened(ad, chain)


def _check(opened: _Opened, node: NodeId | None, now_s: float) -> tuple[Ad, Certificate]:
    ad = opened.ad
    if node is not None and ad.node != node:
        raise ProtocolViolation("the ad is of another node")
    if ad.issued_at - now_s > limits.CLOCK_SKEW_S:
        raise ClockWrong(f"the ad was issued {ad.issued_at - now_s:.0f} s in the future")
    if now_s - ad.expires_at > limits.CLOCK_SKEW_S:
        raise AdExpired(f"the ad expired {now_s - ad.expires_at:.0f} s ago")
    check_times(opened.chain, now_s)
    return ad, opened.chain.certificate


def open_ad(node: NodeId | None, value: bytes, org_root: bytes, now_s: float) -> tuple[Ad, Certificate]:
    """The ad in ``value`` and the certificate of its node. ``node`` None: whoever's it is.

    Raises FrameTooLarge, ProtocolViolation (malformed, another node's), BadSignature, NotMember, ClockWrong
    (from the future beyond CLOCK_SKEW_S), AdExpired (honest, but too old to use).
    """
    return _check(_open(value, org_root), node, now_s)


class AdJudge:
    """Opens ads of one organisation and remembers which bytes verified. Not shared between threads.

    Times are judged anew on every call; only signatures, which cannot change their mind, are remembered.
    """

    def __init__(self, org_root: bytes, wall_clock: Callable[[], float]) -> None:
        self._org_root = org_root
        self._wall_clock = wall_clock
        self._opened: OrderedDict[bytes, _Opened] = OrderedDict()

    def open(self, node: NodeId | None, value: bytes) -> tuple[Ad, Certificate]:
        """As :func:`open_ad`, at the present wall time."""
        opened = self._opened.get(value)
        if opened is None:
            opened = _open(value, self._org_root)
            self._opened[value] = opened
            if len(self._opened) > CACHED_ADS:
                self._opened.popitem(last=False)
        else:
            self._opened.move_to_end(value)
        return _check(opened, node, self._wall_clock())

    def judge(self, node: NodeId, value: bytes) -> tuple[int, int]:
        """(boot, seq) of a valid ad of ``node``: what "newest" means. Raises as :meth:`open` does."""
        return self.open(node, value)[0].version
