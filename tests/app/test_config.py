"""The configuration type, its file of defaults, and what a person is told when it is wrong."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from meshd.app.config import Config, load_config, parse_config
from meshd.core.errors import ConfigInvalid

DEFAULT_TOML = Path(__file__).parents[2] / "configs" / "default.toml"


def _listed(value: object) -> object:
    if isinstance(value, dict):
        return {k: _listed(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def test_default_file_holds_exactly_the_keys_and_defaults_of_the_type() -> None:
    assert tomllib.loads(DEFAULT_TOML.read_text()) == _listed(asdict(Config()))


def test_every_key_of_the_default_file_has_a_comment_above_it() -> None:
    lines = DEFAULT_TOML.read_text().splitlines()
    in_group = False
    for line in lines:
        if line.startswith("#"):
            in_group = True
        elif " = " in line:
            assert in_group, f"no comment above {line!r}"
        else:
            in_group = False


def test_all_problems_are_told_at_once_each_with_its_key() -> None:
    bad = {
        "network": {"listen": ["4717"], "mdns": "yes", "lissten": []},
        "engine": {"slots": 0, "context_tokens": True},
        "api": 4780,
        "nonsense": {},
    }
    with pytest.raises(ConfigInvalid) as e:
        parse_config(bad)
    keys = {p.split(":")[0] for p in e.value.problems}
    assert keys == {
        "network.listen",
        "network.mdns",
        "network.lissten",
        "engine.slots",
        "engine.context_tokens",
        "api",
        "nonsense",
    }


def test_a_subset_keeps_the_other_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[engine]\nslots = 4\n")
    config = load_config(tmp_path / "config.toml")
    assert config.engine.slots == 4
    assert config.network == Config().network


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "config.toml") == Config()


def test_broken_toml_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"[engine\n\xff")
    with pytest.raises(ConfigInvalid):
        load_config(tmp_path / "config.toml")


def test_infinite_numbers_are_refused() -> None:
    with pytest.raises(ConfigInvalid):
        parse_config({"jobs": {"patience_s": float("inf")}})
