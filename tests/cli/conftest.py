"""A served daemon, a home that points to it, and a way to type `mesh`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mesh_cli.main import cli

from tests.cli.contract_server import Daemon, serving, write_home

Mesh = Callable[..., Result]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with serving(Daemon()) as served:
        yield served


@pytest.fixture
def home(daemon: Daemon, tmp_path: Path) -> Path:
    return write_home(tmp_path / "home", daemon.url)


@pytest.fixture
def mesh(home: Path) -> Mesh:
    """``mesh("share", "--cpu", "50%")``: the verb run in this process against the served daemon."""

    def run(*arguments: str, stdin: str | None = None, **more: Any) -> Result:
        environment = {"MESH_HOME": str(home), "MESH_PASSPHRASE_FILE": None, "COLUMNS": "80", "NO_COLOR": None}
        return CliRunner(env=environment).invoke(cli, list(arguments), input=stdin, **more)

    return run
