"""Looks at a machine and a home and says what is wrong, each finding with what to do about it."""

from __future__ import annotations

import importlib.metadata
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshd.app.addresses import host_port
from meshd.app.config import Config, load_config
from meshd.core.errors import MeshError, NotEnrolled
from meshd.engine import gguf
from meshd.engine.probe import MachineProbe
from meshd.store.db import Database
from meshd.store.home import open_home
from meshd.store.identity import load_identity
from meshd.store.models import list_models
from meshd.store.receipts import verify_ledger

MIN_PYTHON = (3, 11)
PIN = ("libp2p", "0.8.1")
Check = dict[str, Any]


def examine(path: Path) -> list[Check]:
    """Every check on the machine and on the home at ``path``. Never raises."""
    checks = [
        _check("python", _python),
        _check("libp2p", _libp2p),
        _check("engine", _engine),
        _check("machine", _machine),
    ]
    home = _check("home", lambda: str(open_home(path).path))
    config = _check("config", lambda: _config(path))
    checks += [home, config]
    if home["ok"]:
        checks += [
            _check("membership", lambda: _membership(path)),
            _check("database", lambda: _database(path)),
            _check("models", lambda: _models(path)),
        ]
    if config["ok"] and not (path / "daemon.json").exists():
        checks.append(_check("ports", lambda: _ports(load_config(path / "config.toml"))))
    return checks


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return {"name": name, "ok": True, "detail": look(), "hint": ""}
    except MeshError as e:
        return {"name": name, "ok": False, "detail": e.message, "hint": e.hint}


def _python() -> str:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < MIN_PYTHON:
        raise MeshError(f"Python {version}", hint="meshd needs Python 3.11 or newer")
    return f"Python {version}"


def _libp2p() -> str:
    name, pinned = PIN
    found = importlib.metadata.version(name)
    if found != pinned:
        raise MeshError(f"{name} {found}", hint=f"meshd leans on {name} {pinned}; install it with the constraints file")
    return f"{name} {found}"


def _engine() -> str:
    return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"


def _machine() -> str:
    machine = MachineProbe().machine()
    gpus = ", ".join(g.name for g in machine.gpus) or "no GPU found"
    return f"{machine.cpu_threads} threads, {machine.memory_bytes / 2**30:.1f} GiB memory, {gpus}"


def _config(path: Path) -> str:
    file = path / "config.toml"
    load_config(file)
    return str(file) if file.exists() else "defaults (no config.toml)"


def _membership(path: Path) -> str:
    certificate = load_identity(open_home(path)).certificate
    left_s = certificate.not_after - time.time()
    if certificate.not_before > time.time() + 60:
        raise MeshError("the certificate begins in the future", hint="is this machine's clock right?")
    if left_s <= 0:
        raise NotEnrolled("the certificate has expired", hint="is this machine's clock right? else join again")
    return f"{certificate.name}, certificate good for {left_s / 86_400:.0f} days"


def _database(path: Path) -> str:
    home = open_home(path)
    if not home.database.exists():
        return "none yet"
    with Database(home.database) as database:
        verdict = verify_ledger(database)
    if verdict.fault:
        raise MeshError(f"the ledger is damaged: {verdict.fault}", hint="restore node.db from a backup")
    return f"{verdict.good} receipts, chain unbroken"


def _models(path: Path) -> str:
    home = open_home(path)
    if not home.database.exists():
        return "none registered"
    with Database(home.database) as database:
        files = list_models(database)
    for file in files:
        gguf.inspect(file.path)
    return ", ".join(f.name for f in files) or "none registered"


def _ports(config: Config) -> str:
    wanted = [("127.0.0.1", config.api.port), host_port(config.network.enrol_listen)]
    wanted += [(a.split("/")[2], int(a.split("/tcp/")[1].split("/")[0])) for a in config.network.listen]
    taken = [f"{host}:{port}" for host, port in wanted if port and not _free(host, port)]
    if taken:
        raise MeshError(f"in use: {', '.join(taken)}", hint="choose other ports in config.toml, or stop who has them")
    return "free"


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
