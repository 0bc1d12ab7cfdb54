"""Verbs that talk to a daemon: what they send, what they print, and the status they end with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mesh_cli.exits import Exit

from tests.cli.conftest import Mesh
from tests.cli.contract_server import Daemon, write_home
from tests.cli.views import DIGEST


def test_status_text_and_json(mesh: Mesh, daemon: Daemon) -> None:
    result = mesh("status")
    assert result.exit_code == Exit.OK
    assert result.output.startswith("atlas  open  3 of 4 slots free\n")
    assert json.loads(mesh("status", "--json").stdout) == daemon.answers["GET", "/mesh/v1/status"][1]


@pytest.mark.parametrize("words", [("nodes",), ("jobs",), ("jobs", "02"), ("model", "list"), ("org", "show")])
def test_reading_verbs_print_text_and_json(mesh: Mesh, words: tuple[str, ...]) -> None:
    assert mesh(*words).exit_code == Exit.OK
    assert isinstance(json.loads(mesh(*words, "--json").stdout), dict)


def test_share_sends_fraction_and_bytes(mesh: Mesh, daemon: Daemon) -> None:
    result = mesh("share", "--cpu", "50%", "--memory", "4GiB")
    assert result.stdout == "shares 50% of the CPU (4 threads), engines up to 4.0 GiB\n"
    assert daemon.asked == [("POST", "/mesh/v1/share", {"cpu": 0.5, "memory_bytes": 4 * 2**30})]


def test_share_without_limits_keeps_them(mesh: Mesh, daemon: Daemon) -> None:
    mesh("share")
    assert daemon.asked[0][2] == {"cpu": None, "memory_bytes": None}


@pytest.mark.parametrize("verb", ["unshare", "pause", "resume"])
def test_switches(mesh: Mesh, daemon: Daemon, verb: str) -> None:
    assert mesh(verb).exit_code == Exit.OK
    assert daemon.asked == [("POST", f"/mesh/v1/{verb}", {})]


def test_drain_sends_seconds(mesh: Mesh, daemon: Daemon) -> None:
    assert mesh("drain", "--deadline", "2m").exit_code == Exit.OK
    assert daemon.asked == [("POST", "/mesh/v1/drain", {"deadline_s": 120.0})]


def test_model_add_sends_the_absolute_path(mesh: Mesh, daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    result = mesh("model", "add", os.path.relpath(file), "--name", "gemma3-270m")
    assert daemon.asked == [("POST", "/mesh/v1/models", {"path": str(file), "name": "gemma3-270m"})]
    assert result.stdout == f"added gemma3-270m  context 32k, digest {DIGEST[:12]}\n"


def test_model_rm_keeps_slashes_in_names(mesh: Mesh, daemon: Daemon) -> None:
    assert mesh("model", "rm", "org/gemma").exit_code == Exit.OK
    assert daemon.asked == [("DELETE", "/mesh/v1/models/org/gemma", None)]


def test_invite_prints_only_the_invite_in_a_pipe(mesh: Mesh, daemon: Daemon) -> None:
    result = mesh("invite", "--valid", "7d", "--uses", "3", "--label", "team=research")
    assert result.stdout == "mesh1-secret\n"
    assert result.stderr == ""
    assert daemon.asked[-1][2] == {
        "site": "berlin",
        "region": "eu/de/berlin",
        "clearance": "internal",
        "valid_s": 604800.0,
        "uses": 3,
        "labels": ["team=research"],
    }


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("share", "--cpu", "2x"), "--cpu"),
        (("share", "--memory", "lots"), "--memory"),
        (("drain", "--deadline", "soon"), "--deadline"),
        (("invite", "--label", "team"), "--label"),
        (("invite", "--region", "EU Berlin"), "--region"),
        (("invite", "--clearance", "secret"), "--clearance"),
        (("run", "x", "--temperature", "9"), "--temperature"),
        (("model", "add", "/no/such.gguf"), "/no/such.gguf"),
    ],
)
def test_bad_values_name_the_option_and_reach_no_daemon(
    mesh: Mesh, daemon: Daemon, words: tuple[str, ...], names: str
) -> None:
    result = mesh(*words)
    assert result.exit_code == Exit.USAGE
    assert names in result.stderr.splitlines()[0]
    assert daemon.asked == []


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "beyond_limits", Exit.CANNOT),
        (409, "already_done", Exit.ALREADY_DONE),
        (503, "mesh_overloaded", Exit.NO_WORKER),
        (500, "something_new", Exit.UNEXPECTED),
    ],
)
def test_the_daemons_error_becomes_a_line_a_hint_and_a_status(
    mesh: Mesh, daemon: Daemon, status: int, code: str, expected: Exit
) -> None:
    daemon.refuse("POST", "/mesh/v1/share", status, code, "it does\nnot go", "do this\x1b[2J")
    result = mesh("share")
    assert result.exit_code == expected
    assert result.stderr == "mesh: it does not go\n  hint: do this [2J\n"
    assert result.stdout == ""


def test_an_answer_that_is_no_json_is_an_error(mesh: Mesh, daemon: Daemon) -> None:
    daemon.answers["GET", "/mesh/v1/status"] = (500, b"<html>")
    result = mesh("status")
    assert result.exit_code == Exit.UNEXPECTED
    assert "HTTP 500" in result.stderr


def test_unknown_and_ambiguous_jobs(mesh: Mesh) -> None:
    assert mesh("jobs", "job_ff").exit_code == Exit.NOT_FOUND
    assert mesh("jobs", "job_0").exit_code == Exit.USAGE


def test_no_home(mesh: Mesh, tmp_path: Path) -> None:
    result = mesh("status", "--home", str(tmp_path / "none"))
    assert result.exit_code == Exit.HOME
    assert "mesh org init" in result.stderr


def test_no_daemon(mesh: Mesh, tmp_path: Path) -> None:
    for verb in ("status", "down", "share", "chat"):
        result = mesh("--home", str(tmp_path), verb)
        assert result.exit_code == Exit.NOT_RUNNING
        assert result.stderr.endswith("  hint: start it with: mesh up\n")


def test_a_daemon_that_died_is_no_daemon(mesh: Mesh, home: Path, daemon: Daemon) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    write_home(home, daemon.url, pid=gone.pid)
    assert mesh("status").exit_code == Exit.NOT_RUNNING
    assert daemon.asked == []


def test_a_port_that_nobody_listens_on_is_no_daemon(mesh: Mesh, home: Path) -> None:
    write_home(home, "http://127.0.0.1:1")
    assert mesh("status").exit_code == Exit.NOT_RUNNING


def test_a_wrong_token(mesh: Mesh, home: Path, daemon: Daemon) -> None:
    write_home(home, daemon.url, token="other")
    result = mesh("status")
    assert result.exit_code == Exit.NOT_AUTHORISED
    assert "mesh token show" in result.stderr


def test_homes_that_cannot_be_used(mesh: Mesh, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert mesh("status", "--home", str(file)).exit_code == Exit.HOME
    (home / "daemon.json").write_text("{broken")
    assert mesh("status").exit_code == Exit.HOME
    (home / "daemon.json").unlink()
    (home / "daemon.json").mkdir()
    result = mesh("status")
    assert result.exit_code == Exit.HOME
    assert "cannot read" in result.stderr
    assert "--home DIR" in result.stderr


def test_a_home_without_token(mesh: Mesh, home: Path) -> None:
    (home / "token").unlink()
    assert mesh("status").exit_code == Exit.HOME


def test_a_proxy_in_the_environment_sees_nothing(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert mesh("status").exit_code == Exit.OK
