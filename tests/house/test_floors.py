"""The house keeps its floors, and the checks that say so really catch a violation."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.house import floors


def _each(check: str, paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if check == "imports":
            found += floors.import_findings(text, floors.module_of(path), path.name == "__init__.py")
        elif check == "shape":
            found += floors.shape_findings(text, str(path.relative_to(floors.ROOT)))
        elif check == "broad":
            found += floors.broad_except_findings(text, floors.module_of(path))
        else:
            found += floors.sleep_findings(text, str(path.relative_to(floors.ROOT)))
    return found


def test_every_import_points_down_and_stays_in_its_room() -> None:
    assert _each("imports", floors.sources()) == []


def test_functions_and_files_stay_short() -> None:
    assert _each("shape", floors.sources()) == []


def test_nothing_swallows_every_error_unmarked() -> None:
    assert _each("broad", floors.sources()) == []


def test_tests_do_not_wait_by_sleeping() -> None:
    assert _each("sleep", sorted((floors.ROOT / "tests").rglob("*.py"))) == []


def test_every_package_is_in_the_plan() -> None:
    packages = {path.parent.name for path in (floors.ROOT / "meshd").glob("*/__init__.py")}
    assert packages <= set(floors.ROOMS)


def test_a_door_opens_without_waking_the_rest_of_its_package() -> None:
    """Python runs a package's __init__ before any module in it, so these must import nothing."""
    for package in {door.rpartition(".")[0] for door in floors.DOORS}:
        path = floors.ROOT.joinpath(*package.split("."), "__init__.py")
        assert list(floors.imports(ast.parse(path.read_text(encoding="utf-8")), package, True)) == []


def test_the_plan_itself_only_points_down() -> None:
    for name, room in floors.ROOMS.items():
        for other in room.rooms:
            lower = floors.ROOMS[other].floor < room.floor
            same_floor_door = other in floors.DOORS.values() and floors.ROOMS[other].floor == room.floor
            assert lower or same_floor_door or (name, other) == ("policy", "core"), (name, other)


@pytest.mark.parametrize(
    ("module", "text", "words"),
    [
        ("meshd.core.job", "import time", "pure room"),
        ("meshd.core.job", "def f():\n    import random", "pure room"),
        ("meshd.core.job", "from meshd.policy import rank", "may not import policy"),
        ("meshd.core.job", "import trio", "may not import trio"),
        ("meshd.policy.rank", "from datetime import datetime", "pure room"),
        ("meshd.policy.rank", "from meshd.machine.submission import Submission", "may not import machine"),
        ("meshd.machine.submission", "import secrets", "pure room"),
        ("meshd.machine.submission", "import socket", "pure room"),
        ("meshd.machine.submission", "from ..wire import codec", "may not import wire"),
        ("meshd.wire.codec", "import trio", "may not import trio"),
        ("meshd.store.journal", "from meshd.net.host import Host", "may not import net"),
        ("meshd.net.host", "from meshd.engine import child", "may not import engine"),
        ("meshd.net.host", "import psutil", "belongs to engine"),
        ("meshd.engine.child", "import meshd.node.shell", "may not import node"),
        ("meshd.node.shell", "import libp2p.host", "belongs to net"),
        ("meshd.node.shell", "from meshd.store.journal import Journal", "may not import store"),
        ("meshd.node.shell", "if TYPE_CHECKING:\n    from meshd.app import config", "may not import app"),
        ("meshd.api.chat", "from meshd.node.shell import Shell", "may not import node"),
        ("meshd.app.compose", "import llama_cpp", "belongs to engine"),
        ("meshd.app.compose", "importlib.import_module('sqlite3')", "belongs to store"),
        ("meshd.testing.world", "from meshd.net import host", "may not import net"),
        ("meshd.attic.old", "import math", "no room called"),
        ("mesh_cli.status", "import trio", "may not import trio"),
        ("mesh_cli.status", "from meshd.wire import codec", "may not import wire"),
        ("mesh_cli.status", "from meshd.api.chat import routes", "may not import api"),
    ],
)
def test_a_forbidden_import_is_caught(module: str, text: str, words: str) -> None:
    found = floors.import_findings(text, module)
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("meshd.core.job", "from dataclasses import dataclass\nfrom meshd.core.ids import JobId"),
        ("meshd.policy.rank", "import math\nfrom meshd.core import limits\nfrom . import feasible"),
        ("meshd.machine.submission", "from meshd.policy.rank import best"),
        ("meshd.wire.codec", "import msgpack\nfrom nacl.signing import SigningKey"),
        ("meshd.store.journal", "import sqlite3\nfrom meshd.wire import codec"),
        ("meshd.node.shell", "import trio\nfrom meshd.node.ports import Engine\nfrom meshd.node import views"),
        ("meshd.api.chat", "from meshd.api import contract\nfrom meshd.node.views import Service"),
        ("meshd.app.compose", "from meshd.net.host import Host\nfrom meshd.store import journal"),
        ("mesh_cli.status", "import click\nfrom meshd.api.contract import STATUS"),
        ("elsewhere", "import libp2p"),
    ],
)
def test_an_allowed_import_is_let_through(module: str, text: str) -> None:
    assert floors.import_findings(text, module) == []


def test_a_long_function_and_a_long_file_are_caught() -> None:
    body = "    x = 1\n" * floors.MAX_FUNCTION_LINES
    assert "f has 61 lines" in floors.shape_findings(f"def f():\n{body}", "here")[0]
    assert floors.shape_findings(f"def f():\n    '''One.\n\n    Two.'''\n{body[10:]}", "here") == []
    assert "501 lines" in floors.shape_findings("x = 1\n" * (floors.MAX_FILE_LINES + 1), "here")[0]


@pytest.mark.parametrize(
    ("module", "head", "caught"),
    [
        ("meshd.node.shell", "except Exception:", True),
        ("meshd.node.shell", "except:", True),
        ("meshd.node.shell", "except (OSError, Exception) as e:", True),
        ("meshd.node.shell", "except BaseException:  # noqa: BLE001", True),
        ("meshd.node.shell", "except Exception:  # noqa: BLE001 - a handler must not kill the host", False),
        ("meshd.engine.child", "except Exception:  # noqa: BLE001 - a handler must not kill the host", True),
        ("meshd.engine.child", "except OSError:", False),
    ],
)
def test_a_broad_except_is_caught(module: str, head: str, caught: bool) -> None:
    assert bool(floors.broad_except_findings(f"try:\n    f()\n{head}\n    pass\n", module)) is caught


def test_a_broad_except_that_raises_again_is_let_through() -> None:
    text = "try:\n    f()\nexcept BaseException:\n    clean()\n    raise\n"
    assert floors.broad_except_findings(text, "meshd.engine.child") == []
    assert floors.broad_except_findings("with contextlib.suppress(Exception):\n    f()\n", "meshd.node.shell")


def test_a_literal_sleep_is_caught_outside_virtual_time() -> None:
    assert floors.sleep_findings("async def test_x():\n    await trio.sleep(0.5)\n", "here")
    assert floors.sleep_findings("time.sleep(1)\n", "here")
    assert floors.sleep_findings("async def test_x():\n    await trio.sleep(0)\n    await trio.sleep(d)\n", "h") == []
    virtual = "@pytest.mark.mock_clock\nasync def test_x():\n    await trio.sleep(3)\n"
    assert floors.sleep_findings(virtual, "here") == []
    module = "pytestmark = pytest.mark.mock_clock\nasync def test_x():\n    await trio.sleep(3)\n"
    assert floors.sleep_findings(module, "here") == []
