"""The organisation's root key at rest: NaCl secretbox under a key that argon2id makes of the passphrase."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox

from meshd.core.errors import BadInput, HomeUnusable, MeshError, NotFound, WrongPassphrase
from meshd.store.files import create_exclusive, read_private
from meshd.wire.codec import decode, encode
from meshd.wire.keys import SEED_BYTES, NodeKey
from meshd.wire.typed import from_wire, to_wire

VERSION: Final = 1
MIN_PASSPHRASE: Final = 8
MAX_OPERATIONS: Final = 16
MAX_MEMORY_BYTES: Final = 1 << 30
"""More than any file of ours asks for: a forged file must not make the machine swap."""


@dataclass(frozen=True, slots=True)
class Cost:
    """argon2id's price of one guess. The default takes about a second and 256 MiB."""

    operations: int = argon2id.OPSLIMIT_MODERATE
    memory_bytes: int = argon2id.MEMLIMIT_MODERATE


@dataclass(frozen=True, slots=True)
class _File:
    version: int
    operations: int
    memory_bytes: int
    salt: bytes
    box: bytes


def create_root_key(path: Path, passphrase: str, cost: Cost | None = None) -> NodeKey:
    """A new random root key, kept encrypted in ``path``. Raises AlreadyDone, BadInput (passphrase too short)."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise BadInput(f"the passphrase needs at least {MIN_PASSPHRASE} characters", param="passphrase")
    cost, seed, salt = cost or Cost(), os.urandom(SEED_BYTES), os.urandom(argon2id.SALTBYTES)
    box = SecretBox(_derive(passphrase, salt, cost)).encrypt(seed)
    create_exclusive(path, encode(to_wire(_File(VERSION, cost.operations, cost.memory_bytes, salt, bytes(box)))))
    return NodeKey(seed)


def open_root_key(path: Path, passphrase: str) -> NodeKey:
    """The root key in ``path``. Raises NotFound, WrongPassphrase, HomeUnusable (damaged file)."""
    data = read_private(path)
    if data is None:
        raise NotFound(f"no root key in {path}", hint="the organisation was created on another machine")
    file = _parse(path, data)
    key = _derive(passphrase, file.salt, Cost(file.operations, file.memory_bytes))
    try:
        return NodeKey(SecretBox(key).decrypt(file.box))
    except CryptoError:
        raise WrongPassphrase("the passphrase does not open the root key") from None


def _parse(path: Path, data: bytes) -> _File:
    try:
        file = from_wire(_File, decode(data, 4096))
    except MeshError:
        file = None
    if (
        file is None
        or file.version != VERSION
        or len(file.salt) != argon2id.SALTBYTES
        or not argon2id.OPSLIMIT_MIN <= file.operations <= MAX_OPERATIONS
        or not argon2id.MEMLIMIT_MIN <= file.memory_bytes <= MAX_MEMORY_BYTES
        or len(file.box) != SecretBox.NONCE_SIZE + SecretBox.MACBYTES + SEED_BYTES
    ):
        raise HomeUnusable(f"{path} is damaged or of a later version", hint="restore it from a backup")
    return file


def _derive(passphrase: str, salt: bytes, cost: Cost) -> bytes:
    text = passphrase.encode("utf-8", "surrogatepass")
    return bytes(argon2id.kdf(SecretBox.KEY_SIZE, text, salt, opslimit=cost.operations, memlimit=cost.memory_bytes))
