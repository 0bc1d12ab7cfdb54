"""Keys: one Ed25519 key a machine, which is also its libp2p identity; X25519 for sealing is derived from it."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import base58
from nacl.bindings import (
    crypto_box_seal,
    crypto_box_seal_open,
    crypto_sign,
    crypto_sign_ed25519_pk_to_curve25519,
    crypto_sign_ed25519_sk_to_curve25519,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import CryptoError

from meshd.core.errors import BadInput, ProtocolViolation
from meshd.core.ids import NodeId, parse_node_id
from meshd.wire.signing import SIGNATURE_BYTES, Domain, Signed

SEED_BYTES: Final = 32
_PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")
"""Multihash "identity" of 36 bytes: a libp2p public key message that says Ed25519, 32 bytes."""


def node_id(verify_key: bytes) -> NodeId:
    """The node id (libp2p peer id, base58) of an Ed25519 verify key of 32 bytes."""
    if len(verify_key) != 32:
        raise BadInput("a verify key has 32 bytes", param="node")
    return NodeId(base58.b58encode(_PEER_ID_PREFIX + verify_key).decode())


@lru_cache(maxsize=4096)
def verify_key_of(node: NodeId) -> bytes:
    """The Ed25519 verify key inside a node id. Raises BadInput when there is none in it."""
    try:
        raw = base58.b58decode(parse_node_id(node))
    except ValueError:
        raise BadInput("not a node id", param="node") from None
    if len(raw) != 38 or not raw.startswith(_PEER_ID_PREFIX):
        raise BadInput("not the id of an Ed25519 key", param="node")
    return bytes(raw[6:])


@lru_cache(maxsize=4096)
def sealing_key_of(verify_key: bytes) -> bytes:
    """The X25519 public key derived from an Ed25519 verify key. Raises BadInput when the point is no good one."""
    try:
        return bytes(crypto_sign_ed25519_pk_to_curve25519(verify_key))
    except (CryptoError, ValueError, TypeError):
        raise BadInput("not a usable Ed25519 key", param="node") from None


def seal(verify_key: bytes, plaintext: bytes) -> bytes:
    """``plaintext`` sealed so that only the holder of the key behind ``verify_key`` opens it (48 bytes longer)."""
    return bytes(crypto_box_seal(plaintext, sealing_key_of(verify_key)))


class NodeKey:
    """An Ed25519 key pair made from a 32-byte seed: a node's, and in the same form an issuer's or the root's.

    It has no repr of its secrets and refuses to be pickled or copied into text.
    """

    __slots__ = ("_box_secret", "_secret", "_seed", "node", "verify_key")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise BadInput("a key seed has 32 bytes", param="seed")
        self._seed = bytes(seed)
        self.verify_key, self._secret = crypto_sign_seed_keypair(self._seed)
        self._box_secret = crypto_sign_ed25519_sk_to_curve25519(self._secret)
        self.node = node_id(self.verify_key)

    @property
    def seed(self) -> bytes:
        """The secret seed: for the key file and for libp2p's identity, for nothing else."""
        return self._seed

    def sign(self, domain: Domain, payload: bytes) -> Signed:
        """``payload`` signed by this key in ``domain``."""
        return Signed(payload, bytes(crypto_sign(domain.message(payload), self._secret)[:SIGNATURE_BYTES]))

    def unseal(self, sealed: bytes) -> bytes:
        """What was sealed to this key. Raises ProtocolViolation when it was not, or was changed on the way."""
        try:
            opened = crypto_box_seal_open(sealed, sealing_key_of(self.verify_key), self._box_secret)
        except (CryptoError, ValueError, TypeError):
            raise ProtocolViolation("the sealed part does not open with this node's key") from None
        return bytes(opened)

    def __repr__(self) -> str:
        return f"NodeKey({self.node})"

    def __reduce__(self) -> str:
        raise TypeError("a key pair is not pickled")
