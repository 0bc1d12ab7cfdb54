"""Keys: ids as libp2p has them, strict signatures, sealing, and no secrets in text."""

from __future__ import annotations

import pickle

import pytest
from nacl.bindings import crypto_core_ed25519_NONREDUCEDSCALARBYTES, crypto_sign

from meshd.core.errors import BadInput, BadSignature, ProtocolViolation
from meshd.core.ids import NodeId
from meshd.wire.keys import NodeKey, node_id, seal, verify_key_of
from meshd.wire.signing import Domain, Signed, verify
from tests.wire.samples import ROOT, STRANGER, WORKER

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def test_node_id_is_the_libp2p_peer_id_of_the_key() -> None:
    from libp2p.crypto.ed25519 import Ed25519PublicKey
    from libp2p.peer.id import ID

    peer = ID.from_pubkey(Ed25519PublicKey.from_bytes(WORKER.verify_key))
    assert WORKER.node == node_id(WORKER.verify_key) == peer.to_base58()
    assert verify_key_of(WORKER.node) == WORKER.verify_key


def test_an_id_that_holds_no_ed25519_key_is_refused() -> None:
    broken = WORKER.node[:-1] + ("1" if WORKER.node[-1] != "1" else "2")
    assert verify_key_of(NodeId(broken)) != WORKER.verify_key  # another key altogether, not this one
    for text in ("", "12D3KooW", "12D3KooW" + "z" * 44, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"):
        with pytest.raises(BadInput):
            verify_key_of(NodeId(text))


@pytest.mark.parametrize("domain", list(Domain))
def test_a_signature_counts_in_its_own_domain_only(domain: Domain) -> None:
    signed = WORKER.sign(domain, b"payload")
    assert signed.verify(WORKER.verify_key, domain) == b"payload"
    for other in set(Domain) - {domain}:
        with pytest.raises(BadSignature):
            signed.verify(WORKER.verify_key, other)


def test_domains_are_distinct_and_none_begins_another() -> None:
    messages = [d.message(b"") for d in Domain]
    assert not [(a, b) for a in messages for b in messages if a is not b and b.startswith(a)]


def test_every_changed_bit_breaks_the_signature() -> None:
    signed = WORKER.sign(Domain.AD, b"payload")
    for bit in range(512):
        changed = bytearray(signed.signature)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadSignature):
            verify(WORKER.verify_key, Domain.AD, b"payload", bytes(changed))


def test_the_other_s_of_the_same_signature_is_refused() -> None:
    """Without the check of S, adding the group order would give a second valid signature."""
    signed = WORKER.sign(Domain.AD, b"payload")
    scalar = int.from_bytes(signed.signature[32:], "little") + GROUP_ORDER
    malleated = signed.signature[:32] + scalar.to_bytes(32, "little")
    with pytest.raises(BadSignature):
        verify(WORKER.verify_key, Domain.AD, b"payload", malleated)
    assert crypto_core_ed25519_NONREDUCEDSCALARBYTES == 64


def test_a_small_order_key_verifies_nothing() -> None:
    identity = (1).to_bytes(32, "little")
    with pytest.raises(BadSignature):
        verify(identity, Domain.AD, b"anything", identity + bytes(32))
    with pytest.raises(BadInput):
        seal(identity, b"secret")


@pytest.mark.parametrize("size", [0, 63, 65])
def test_signatures_of_a_wrong_length_are_refused(size: int) -> None:
    with pytest.raises(BadSignature):
        verify(WORKER.verify_key, Domain.AD, b"", bytes(size))
    with pytest.raises(ProtocolViolation):
        Signed.of([b"", bytes(size)])


def test_signing_is_plain_ed25519() -> None:
    import nacl.bindings as b

    _, secret = b.crypto_sign_seed_keypair(WORKER.seed)
    assert WORKER.sign(Domain.AD, b"x").signature == crypto_sign(b"meshd/ad/1\0x", secret)[:64]


def test_only_the_addressee_opens_a_seal() -> None:
    sealed = seal(WORKER.verify_key, b"secret")
    assert WORKER.unseal(sealed) == b"secret"
    for key, data in ((STRANGER, sealed), (WORKER, sealed[:-1]), (WORKER, b""), (WORKER, sealed + b"\0")):
        with pytest.raises(ProtocolViolation):
            key.unseal(data)


def test_a_key_shows_no_secret_and_is_not_pickled() -> None:
    assert ROOT.seed.hex() not in repr(ROOT)
    assert repr(ROOT.seed)[2:-1] not in repr(ROOT)
    with pytest.raises(TypeError):
        pickle.dumps(ROOT)


def test_a_seed_has_32_bytes() -> None:
    with pytest.raises(BadInput):
        NodeKey(b"short")
