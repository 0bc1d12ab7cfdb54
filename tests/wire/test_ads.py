"""Ads: believed only when signed by the node, shown with its membership, and fresh."""

from __future__ import annotations

import pytest

from meshd.core.ad import Ad
from meshd.core.errors import (
    AdExpired,
    BadInput,
    BadSignature,
    ClockWrong,
    FrameTooLarge,
    MeshError,
    NotMember,
    ProtocolViolation,
)
from meshd.core.limits import AD_TTL_S, CLOCK_SKEW_S, MAX_AD_BYTES
from meshd.wire.ads import CACHED_ADS, AdJudge, open_ad, seal_ad
from meshd.wire.codec import decode, encode
from meshd.wire.signing import Domain
from meshd.wire.typed import to_wire
from tests.wire.samples import DAY_S, NOW_S, ROOT, STRANGER, SUBMITTER, WORKER, ad_of, certificate_of, proof_of

PROOF = proof_of(WORKER)
VALUE = seal_ad(ad_of(), WORKER, PROOF)


def opened(value: bytes, now_s: float = NOW_S, root: bytes = ROOT.verify_key) -> Ad:
    return open_ad(WORKER.node, value, root, now_s)[0]


def test_comes_back_with_the_attested_certificate() -> None:
    assert open_ad(None, VALUE, ROOT.verify_key, NOW_S) == (ad_of(), certificate_of(WORKER))


def test_a_full_ad_fits() -> None:
    assert len(seal_ad(ad_of(models=32), WORKER, PROOF)) <= MAX_AD_BYTES


def test_only_the_node_signs_its_ad() -> None:
    with pytest.raises(BadInput):
        seal_ad(ad_of(WORKER), SUBMITTER, PROOF)
    payload = encode(to_wire(ad_of()))
    with pytest.raises(BadSignature):
        opened(encode([payload, STRANGER.sign(Domain.AD, payload).signature, PROOF]))


def test_another_nodes_ad_or_proof() -> None:
    with pytest.raises(ProtocolViolation):
        open_ad(SUBMITTER.node, VALUE, ROOT.verify_key, NOW_S)
    with pytest.raises(NotMember):
        opened(seal_ad(ad_of(), WORKER, proof_of(SUBMITTER)))


def test_an_outsiders_ad() -> None:
    with pytest.raises(NotMember):
        opened(VALUE, root=STRANGER.verify_key)


def test_times() -> None:
    opened(VALUE, NOW_S - CLOCK_SKEW_S)
    opened(VALUE, NOW_S + AD_TTL_S + CLOCK_SKEW_S)
    with pytest.raises(ClockWrong):
        opened(VALUE, NOW_S - CLOCK_SKEW_S - 0.1)
    with pytest.raises(AdExpired):
        opened(VALUE, NOW_S + AD_TTL_S + CLOCK_SKEW_S + 0.1)


def test_a_longer_life_than_allowed_is_refused() -> None:
    wire = to_wire(ad_of())
    payload = encode({**wire, "expires_at": NOW_S + AD_TTL_S + 1})
    with pytest.raises(ProtocolViolation):
        opened(encode([payload, WORKER.sign(Domain.AD, payload).signature, PROOF]))


def test_oversize() -> None:
    with pytest.raises(FrameTooLarge):
        opened(VALUE + bytes(MAX_AD_BYTES))
    long = Ad(**{**_fields(ad_of(models=32)), "models": tuple(_long(i) for i in range(32))})
    with pytest.raises(BadInput):
        seal_ad(long, WORKER, PROOF)


def test_every_changed_byte_is_noticed() -> None:
    for at in range(len(VALUE)):
        changed = bytearray(VALUE)
        changed[at] ^= 0x01
        with pytest.raises(MeshError):
            opened(bytes(changed))


def test_the_judge_orders_and_judges_time_anew() -> None:
    now = [NOW_S]
    judge = AdJudge(ROOT.verify_key, lambda: now[0])
    newer = seal_ad(ad_of(seq=10), WORKER, PROOF)
    reborn = seal_ad(ad_of(boot=4, seq=1), WORKER, PROOF)
    versions = [judge.judge(WORKER.node, v) for v in (VALUE, newer, reborn, VALUE)]
    assert versions == [(3, 9), (3, 10), (4, 1), (3, 9)]
    with pytest.raises(ProtocolViolation):
        judge.judge(SUBMITTER.node, VALUE)
    now[0] += AD_TTL_S + CLOCK_SKEW_S + 1
    with pytest.raises(AdExpired):
        judge.judge(WORKER.node, VALUE)
    now[0] += 30 * DAY_S
    with pytest.raises(MeshError):
        judge.judge(WORKER.node, VALUE)


def test_a_remembered_ad_does_not_outlive_the_certificate() -> None:
    late = NOW_S + 7 * DAY_S - 5
    judge = AdJudge(ROOT.verify_key, lambda: now[0])
    now = [late]
    value = seal_ad(ad_of(issued_at=late), WORKER, PROOF)
    judge.judge(WORKER.node, value)
    now[0] = late + 6
    with pytest.raises(NotMember):
        judge.judge(WORKER.node, value)


def test_the_judge_remembers_a_bounded_number() -> None:
    judge = AdJudge(ROOT.verify_key, lambda: NOW_S)
    for seq in range(CACHED_ADS + 20):
        judge.judge(WORKER.node, seal_ad(ad_of(seq=seq), WORKER, PROOF))
    assert len(judge._opened) == CACHED_ADS


def test_the_envelope_is_exactly_three_parts() -> None:
    parts = decode(VALUE, MAX_AD_BYTES)
    for wrong in (parts[:2], [*parts, b""], [*parts[:2], "x"], {}):
        with pytest.raises(ProtocolViolation):
            opened(encode(wrong))


def _fields(ad: Ad) -> dict[str, object]:
    return {name: getattr(ad, name) for name in Ad.__slots__}


def _long(number: int) -> object:
    from meshd.core.ad import ModelOffer

    return ModelOffer(f"{number:03}" + "n" * 190, ad_of().models[0].digest, 8192)
