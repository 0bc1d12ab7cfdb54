"""Configuration: typed, bounded, all problems told at once.

``configs/default.toml`` documents every key; a test holds it against the types below.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from meshd.core.errors import ConfigInvalid

HINT = "every key with its unit and reason is in configs/default.toml"


def _range(low: float, high: float) -> dict[str, Any]:
    def check(value: float) -> str | None:
        return None if math.isfinite(value) and low <= value <= high else f"must be between {low:g} and {high:g}"

    return {"check": check}


def _one_of(*words: str) -> dict[str, Any]:
    def check(value: str) -> str | None:
        return None if value in words else f"must be one of {', '.join(words)}"

    return {"check": check}


def _multiaddrs(value: tuple[str, ...]) -> str | None:
    bad = [a for a in value if not a.startswith(("/ip4/", "/ip6/", "/dns4/", "/dns6/")) or "/tcp/" not in a]
    return f"not a TCP multiaddr: {bad[0]!r} (like /ip4/0.0.0.0/tcp/4717)" if bad else None


def _host_port(value: str) -> str | None:
    host, _, port = value.rpartition(":")
    good = value == "" or (host != "" and port.isdigit() and int(port) < 65536)
    return None if good else f"not host:port: {value!r}"


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Listening, announcing, dialling."""

    listen: tuple[str, ...] = field(default=("/ip4/0.0.0.0/tcp/4717",), metadata={"check": _multiaddrs})
    announce: tuple[str, ...] = field(default=(), metadata={"check": _multiaddrs})
    enrol_listen: str = field(default="0.0.0.0:4718", metadata={"check": _host_port})
    enrol_announce: str = field(default="", metadata={"check": _host_port})
    mdns: bool = True
    mdns_interfaces: tuple[str, ...] = ()
    dial_timeout_s: float = field(default=3.0, metadata=_range(0.1, 60))
    max_neighbours: int = field(default=32, metadata=_range(1, 256))
    max_peers: int = field(default=4096, metadata=_range(8, 100_000))


@dataclass(frozen=True, slots=True)
class DirectoryConfig:
    """The DHT's rhythm."""

    publish_interval_s: float = field(default=5.0, metadata=_range(1, 9))
    refresh_interval_s: float = field(default=10.0, metadata=_range(1, 3600))


@dataclass(frozen=True, slots=True)
class MembershipConfig:
    """The rhythm of ads between neighbours."""

    ad_interval_s: float = field(default=3.0, metadata=_range(0.5, 8))
    gossip_interval_s: float = field(default=1.0, metadata=_range(0.2, 60))
    gossip_ads: int = field(default=12, metadata=_range(1, 16))


@dataclass(frozen=True, slots=True)
class JobsConfig:
    """Bounds on this node's own jobs."""

    patience_s: float = field(default=5.0, metadata=_range(0, 600))
    queue_s: float = field(default=30.0, metadata=_range(0, 3600))
    max_waiting: int = field(default=64, metadata=_range(0, 4096))
    max_running: int = field(default=256, metadata=_range(1, 4096))
    history: int = field(default=200, metadata=_range(1, 10_000))


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """llama.cpp."""

    slots: int = field(default=16, metadata=_range(1, 256))
    context_tokens: int = field(default=4096, metadata=_range(128, 1_048_576))
    prefill_chunk_tokens: int = field(default=256, metadata=_range(16, 4096))
    gpu_layers: int = field(default=-1, metadata=_range(-1, 1000))
    load_timeout_s: float = field(default=120.0, metadata=_range(1, 3600))
    hang_after_s: float = field(default=30.0, metadata=_range(1, 3600))
    priority: str = field(default="low", metadata=_one_of("normal", "low", "idle"))
    nice: int = field(default=5, metadata=_range(0, 19))
    idle_unload_s: float = field(default=900.0, metadata=_range(0, 604_800))
    preload: bool = True


@dataclass(frozen=True, slots=True)
class UpstreamsConfig:
    """Servers that this node stands in front of."""

    connect_timeout_s: float = field(default=5.0, metadata=_range(0.1, 60))
    first_token_timeout_s: float = field(default=120.0, metadata=_range(0.5, 3600))
    stall_timeout_s: float = field(default=30.0, metadata=_range(0.5, 3600))
    check_interval_s: float = field(default=10.0, metadata=_range(0.1, 3600))
    check_timeout_s: float = field(default=5.0, metadata=_range(0.1, 60))
    learn_timeout_s: float = field(default=120.0, metadata=_range(0.5, 600))
    max_rest_s: float = field(default=60.0, metadata=_range(0.1, 3600))


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """The local HTTP API."""

    port: int = field(default=4780, metadata=_range(0, 65535))
    keepalive_s: float = field(default=10.0, metadata=_range(1, 300))


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Logging."""

    level: str = field(default="info", metadata=_one_of("debug", "info", "warning", "error"))


@dataclass(frozen=True, slots=True)
class Config:
    """All of a daemon's configuration."""

    network: NetworkConfig = NetworkConfig()
    directory: DirectoryConfig = DirectoryConfig()
    membership: MembershipConfig = MembershipConfig()
    jobs: JobsConfig = JobsConfig()
    engine: EngineConfig = EngineConfig()
    upstreams: UpstreamsConfig = UpstreamsConfig()
    api: ApiConfig = ApiConfig()
    log: LogConfig = LogConfig()


def load_config(path: Path) -> Config:
    """The configuration in the TOML file at ``path``; the defaults when there is no such file.

    Raises ConfigInvalid with every problem found, each named by its key.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigInvalid((f"{path.name}: {e}",), hint=HINT) from e
    return parse_config(data)


def parse_config(data: Mapping[str, Any]) -> Config:
    """The configuration in ``data`` (sections of keys); raises ConfigInvalid with every problem found."""
    problems: list[str] = []
    config: Config = _section(Config, data, "", problems)
    if problems:
        raise ConfigInvalid(tuple(problems), hint=HINT)
    return config


def _section(cls: type[Any], data: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    problems.extend(f"{prefix}{key}: no such key" for key in data if key not in known)
    values: dict[str, Any] = {}
    for name, f in known.items():
        if name not in data:
            continue
        key, raw = f"{prefix}{name}", data[name]
        if is_dataclass(hints[name]):
            if isinstance(raw, dict):
                values[name] = _section(hints[name], raw, f"{key}.", problems)
            else:
                problems.append(f"{key}: must be a section")
        elif (value := _typed(hints[name], raw)) is None:
            problems.append(f"{key}: must be {_WORDS[hints[name]]}")
        else:
            check: Callable[[Any], str | None] | None = f.metadata.get("check")
            if check is not None and (problem := check(value)):
                problems.append(f"{key}: {problem}")
            values[name] = value
    return cls(**values)


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple[str, ...]: "a list of strings",
}


def _typed(kind: Any, raw: object) -> Any:
    """``raw`` as ``kind``, or None when it is of another type; a bool is no number."""
    if kind is bool or isinstance(raw, bool):
        return raw if kind is bool and isinstance(raw, bool) else None
    if kind is float:
        return float(raw) if isinstance(raw, int | float) else None
    if kind == tuple[str, ...]:
        return tuple(raw) if isinstance(raw, list) and all(isinstance(x, str) for x in raw) else None
    return raw if isinstance(raw, kind) else None
