"""Keys, root key and token on disk."""

from __future__ import annotations

import stat

import pytest

from meshd.core.errors import AlreadyDone, BadInput, HomeUnusable, NotFound, WrongPassphrase
from meshd.store.home import Home
from meshd.store.keyfile import api_token, create_key, load_key, node_key, rotate_api_token, token_matches
from meshd.store.rootkey import create_root_key, open_root_key
from meshd.wire.codec import decode, encode
from tests.store.conftest import CHEAP, PASSPHRASE


def test_a_node_key_is_made_once(home: Home) -> None:
    assert load_key(home.node_key) is None
    key = node_key(home)
    assert node_key(home).node == key.node
    assert stat.S_IMODE(home.node_key.stat().st_mode) == 0o600
    with pytest.raises(AlreadyDone):
        create_key(home.node_key)


def test_a_damaged_or_open_key_is_refused(home: Home) -> None:
    node_key(home)
    home.node_key.chmod(0o644)
    with pytest.raises(HomeUnusable, match="open to other users"):
        node_key(home)
    home.node_key.chmod(0o600)
    home.node_key.write_bytes(b"short")
    with pytest.raises(HomeUnusable, match="damaged"):
        node_key(home)


def test_the_token_lasts_until_it_is_rotated(home: Home) -> None:
    token = api_token(home)
    assert token.startswith("mesh_")
    assert api_token(home) == token
    assert stat.S_IMODE(home.token.stat().st_mode) == 0o600
    new = rotate_api_token(home)
    assert new != token
    assert api_token(home) == new
    assert token_matches(new, new)
    assert not token_matches(token, new)
    assert not token_matches("\ud800", new)


def test_a_damaged_token_is_told(home: Home) -> None:
    api_token(home)
    home.token.write_bytes(b"\xff\xfe")
    with pytest.raises(HomeUnusable, match="damaged"):
        api_token(home)


def test_the_root_key_opens_with_its_passphrase_only(home: Home) -> None:
    with pytest.raises(NotFound):
        open_root_key(home.root_key, PASSPHRASE)
    root = create_root_key(home.root_key, PASSPHRASE, CHEAP)
    assert open_root_key(home.root_key, PASSPHRASE).node == root.node
    assert root.seed not in home.root_key.read_bytes()
    with pytest.raises(WrongPassphrase):
        open_root_key(home.root_key, PASSPHRASE + " ")
    with pytest.raises(AlreadyDone):
        create_root_key(home.root_key, PASSPHRASE, CHEAP)


def test_a_short_passphrase(home: Home) -> None:
    with pytest.raises(BadInput):
        create_root_key(home.root_key, "short", CHEAP)
    assert not home.root_key.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", 2), ("operations", 10**6), ("memory_bytes", 2**40), ("memory_bytes", 1), ("salt", b""), ("box", b"")],
)
def test_a_forged_root_key_file_costs_nothing(home: Home, field: str, value: object) -> None:
    create_root_key(home.root_key, PASSPHRASE, CHEAP)
    file = decode(home.root_key.read_bytes(), 4096)
    home.root_key.write_bytes(encode({**file, field: value}))
    with pytest.raises(HomeUnusable):
        open_root_key(home.root_key, PASSPHRASE)
