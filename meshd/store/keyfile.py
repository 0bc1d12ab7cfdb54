"""Key files and the API token, each readable by their owner only."""

from __future__ import annotations

import base64
import hmac
import os
import re
from pathlib import Path
from typing import Final

from meshd.core.errors import HomeUnusable
from meshd.store.files import create_exclusive, read_private, write_atomic
from meshd.store.home import Home
from meshd.wire.keys import SEED_BYTES, NodeKey

_TOKEN: Final = re.compile(r"mesh_[A-Za-z0-9_-]{43}")


def create_key(path: Path) -> NodeKey:
    """A new random key, kept in ``path``. Raises AlreadyDone when there is one: it is never overwritten."""
    seed = os.urandom(SEED_BYTES)
    create_exclusive(path, seed)
    return NodeKey(seed)


def load_key(path: Path) -> NodeKey | None:
    """The key in ``path``; None when there is none. Raises HomeUnusable when it is damaged or not private."""
    seed = read_private(path)
    if seed is None:
        return None
    if len(seed) != SEED_BYTES:
        raise HomeUnusable(f"{path} is damaged", hint="restore it from a backup, or join again with an empty home")
    return NodeKey(seed)


def node_key(home: Home) -> NodeKey:
    """The home's node key, made when it has none yet."""
    return load_key(home.node_key) or create_key(home.node_key)


def api_token(home: Home) -> str:
    """The token of the local API, made when there is none yet. Raises HomeUnusable when it is damaged."""
    data = read_private(home.token)
    if data is None:
        return rotate_api_token(home)
    text = data.decode("ascii", "replace").strip()
    if not _TOKEN.fullmatch(text):
        raise HomeUnusable(f"{home.token} is damaged", hint="mesh token rotate makes a new one")
    return text


def rotate_api_token(home: Home) -> str:
    """A new token in place of the old one, which is of no use from now on."""
    text = "mesh_" + base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
    write_atomic(home.token, text.encode() + b"\n")
    return text


def token_matches(shown: str, token: str) -> bool:
    """Whether ``shown`` is ``token``, compared in constant time."""
    return hmac.compare_digest(shown.encode("utf-8", "replace"), token.encode())
