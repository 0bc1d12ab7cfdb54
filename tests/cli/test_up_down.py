"""`mesh up`, `mesh down` and Ctrl-C with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mesh_cli.exits import Exit
from mesh_cli.home import pid_alive

from tests.cli.contract_server import Daemon, chunk

FAKE = Path(__file__).with_name("fake_program.py")
MESH = f"""
import sys
from mesh_cli import program
from mesh_cli.main import main
program.PROGRAM = (sys.executable, {str(FAKE)!r})
main()
"""


class Box:
    """A home in a folder of its own, and `mesh` as a process."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.plan({})

    def plan(self, plan: dict[str, Any]) -> None:
        (self.home.parent / "plan.json").write_text(json.dumps(plan))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", MESH, *arguments],
            env={**os.environ, "MESH_HOME": str(self.home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def mesh(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def pid(self) -> int:
        return int(json.loads((self.home / "daemon.json").read_text())["pid"])


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    if (box.home / "daemon.json").exists() and box.pid() != os.getpid() and pid_alive(box.pid()):
        os.kill(box.pid(), signal.SIGKILL)


def test_up_is_idempotent_and_down_waits(box: Box) -> None:
    status, out, err = box.mesh("up")
    assert (status, err) == (Exit.OK, "")
    assert out.startswith("up: atlas at http://127.0.0.1:")
    first = box.pid()
    assert os.getsid(first) == first  # closing the terminal does not take it along
    status, out, _ = box.mesh("up")
    assert status == Exit.OK
    assert out.startswith("already up: atlas at ")
    assert box.pid() == first
    assert box.mesh("down") == (Exit.OK, "down\n", "")
    assert not pid_alive(first)
    assert box.mesh("down")[0] == Exit.NOT_RUNNING
    assert (box.home / "daemon.log").stat().st_mode & 0o777 == 0o600


def test_a_daemon_that_dies_at_start_tells_why(box: Box) -> None:
    told = json.dumps({"ok": False, "code": "port_in_use", "message": "port 4717 is taken", "hint": "network.listen"})
    box.plan({"run": {"prints": f"starting\n{told}", "returns": 1}})
    assert box.mesh("up") == (Exit.CANNOT, "", "mesh: port 4717 is taken\n  hint: network.listen\n")


def test_only_this_starts_part_of_the_log_counts(box: Box) -> None:
    (box.home / "daemon.log").write_text(json.dumps({"ok": False, "code": "port_in_use", "message": "old"}) + "\n")
    box.plan({"run": {"prints": "ImportError: something", "returns": 1}})
    status, _, err = box.mesh("up")
    assert status == Exit.UNEXPECTED
    assert "ImportError: something" in err
    assert "daemon.log" in err
    assert "old" not in err


def test_up_in_the_foreground_becomes_the_daemon(box: Box) -> None:
    box.plan({"run": {"prints": "in front", "returns": 5}})
    assert box.mesh("up", "--foreground") == (5, "", "in front\n")


def test_up_without_a_home(box: Box, tmp_path: Path) -> None:
    status, _, err = box.mesh("up", "--home", str(tmp_path / "none"))
    assert status == Exit.HOME
    assert "mesh join" in err
    assert not (tmp_path / "none").exists()


def test_down_gives_up_after_its_time(box: Box, home: Path) -> None:
    status, _, err = box.mesh("down", "--home", str(home), "--timeout", "200ms")
    assert status == Exit.TIMEOUT
    assert f"kill {os.getpid()}" in err


def test_ctrl_c_ends_quietly_with_130(box: Box, home: Path, daemon: Daemon) -> None:
    daemon.stream = (chunk("The Rh"), "hold")
    process = box.start("run", "--home", str(home), "x")
    assert process.stdout is not None
    with process:
        assert process.stdout.read(6) == "The Rh"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == Exit.INTERRUPTED
        assert process.stderr is not None
        assert process.stderr.read().strip() == ""
    assert daemon.left.wait(60)


def test_a_closed_pipe_is_no_error(box: Box, home: Path) -> None:
    process = box.start("status", "--home", str(home))
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stderr:
        assert stderr.read() == ""
    assert process.wait(60) == Exit.OK


def test_a_bug_is_one_line_and_never_a_traceback(box: Box, home: Path, daemon: Daemon) -> None:
    daemon.answers["GET", "/mesh/v1/status"] = (200, {"unexpected": "shape"})
    status, _, err = box.mesh("status", "--home", str(home))
    assert status == Exit.UNEXPECTED
    assert err.startswith("mesh: unexpected KeyError")
    assert len(err.splitlines()) == 2


def test_up_heals_a_torn_daemon_json(box: Box) -> None:
    (box.home / "daemon.json").write_text('{"pid": 12')
    assert box.mesh("up")[0] == Exit.OK
    assert box.mesh("down")[0] == Exit.OK
