"""`mesh upstream`: what it sends, what it prints, and that a key is never an argument."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mesh_cli.exits import Exit

from meshd.node.views import UpstreamView
from tests.cli import views
from tests.cli.conftest import Mesh
from tests.cli.contract_server import Daemon

PATH = "/mesh/v1/upstreams"
URL = "https://llm.example/v1"


def view(**changes: Any) -> dict[str, Any]:
    made = UpstreamView(
        name="big",
        url=URL,
        model="big",
        digest=views.DIGEST,
        class_max="internal",
        has_key=True,
        slots=16,
        slots_free=15,
        context_tokens=32768,
        state="ready",
        reason="",
        generation_tokens_per_s=41.7,
        abilities=("generate", "resume"),
        prompts=("chat", "text"),
        formats=True,
    )
    return {**views.plain(made), **changes}


def sent(daemon: Daemon) -> Any:
    return next(body for method, path, body in daemon.asked if (method, path) == ("POST", PATH))


@pytest.fixture(autouse=True)
def answers(daemon: Daemon) -> None:
    daemon.answers["POST", PATH] = (200, view())
    daemon.answers["GET", PATH] = (200, {"upstreams": [view()]})
    daemon.answers["DELETE", f"{PATH}/org/big"] = (200, {})


def test_add_sends_what_was_said_and_the_default_class(mesh: Mesh, daemon: Daemon) -> None:
    result = mesh("upstream", "add", URL, "--model", "big")
    assert result.exit_code == Exit.OK
    assert sent(daemon) == {
        "url": URL,
        "model": "big",
        "name": None,
        "class_max": "internal",
        "slots": 16,
        "context_tokens": None,
        "key": None,
    }
    assert result.stdout == "added big  chat, text, JSON schemas; up to internal\n"


def test_a_key_comes_from_a_file_or_a_pipe_and_is_printed_nowhere(mesh: Mesh, daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    for words, stdin in ((("--key-file", str(file)), None), (("--key",), "s3cret\n")):
        daemon.asked.clear()
        result = mesh("upstream", "add", URL, "--model", "big", *words, stdin=stdin)
        assert result.exit_code == Exit.OK and sent(daemon)["key"] == "s3cret"
        assert "s3cret" not in result.output


def test_a_key_as_an_argument_is_no_option(mesh: Mesh, daemon: Daemon) -> None:
    result = mesh("upstream", "add", URL, "--model", "big", "--key=s3cret")
    assert result.exit_code == Exit.USAGE and daemon.asked == []


@pytest.mark.parametrize("key", ["", "  \n", "x" * 5000])
def test_no_key_where_one_was_promised_is_an_error(mesh: Mesh, daemon: Daemon, key: str) -> None:
    result = mesh("upstream", "add", URL, "--model", "big", "--key", stdin=key)
    assert result.exit_code == Exit.USAGE and daemon.asked == []


@pytest.mark.parametrize("words", [("--slots", "0"), ("--class-max", "secret"), ("--context", "0")])
def test_bad_values_name_the_option_and_reach_no_daemon(mesh: Mesh, daemon: Daemon, words: tuple[str, str]) -> None:
    result = mesh("upstream", "add", URL, "--model", "big", *words)
    assert result.exit_code == Exit.USAGE and words[0] in result.stderr.splitlines()[0]
    assert daemon.asked == []


def test_add_warns_of_what_one_should_know(mesh: Mesh, daemon: Daemon) -> None:
    daemon.answers["POST", PATH] = (200, view(url="http://rack:8000/v1", abilities=["generate"], formats=False))
    said = mesh("upstream", "add", "http://rack:8000", "--model", "big").stdout
    assert "breaks off there cannot go on" in said and "not encrypted" in said and "JSON" not in said
    daemon.answers["POST", PATH] = (200, view(url="http://127.0.0.1:8000/v1"))
    assert "not encrypted" not in mesh("upstream", "add", "http://127.0.0.1:8000", "--model", "big").stdout


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "invalid_request", Exit.USAGE),
        (503, "unreachable", Exit.TIMEOUT),
        (409, "already_done", Exit.ALREADY_DONE),
    ],
)
def test_what_is_wrong_with_the_server_is_a_line_and_a_status(
    mesh: Mesh, daemon: Daemon, status: int, code: str, expected: Exit
) -> None:
    daemon.refuse("POST", PATH, status, code, "the server has no model 'big'", "it has: tiny")
    result = mesh("upstream", "add", URL, "--model", "big")
    assert result.exit_code == expected
    assert result.stderr.endswith("mesh: the server has no model 'big'\n  hint: it has: tiny\n")


def test_list_shows_state_and_why(mesh: Mesh, daemon: Daemon) -> None:
    rows = [view(), view(name="small", state="resting", reason="no route\x1b[2J", slots_free=0, context_tokens=0)]
    daemon.answers["GET", PATH] = (200, {"upstreams": rows})
    lines = mesh("upstream", "list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "SERVER", "CLASS", "CONTEXT", "SLOTS", "TOK/S"]
    assert lines[1].split() == ["big", "ready", URL, "up", "to", "internal", "32k", "15/16", "42"]
    assert "resting" in lines[2] and lines[3].startswith("small: no route") and "\x1b" not in lines[3]
    assert json.loads(mesh("upstream", "list", "--json").stdout) == {"upstreams": rows}
    daemon.answers["GET", PATH] = (200, {"upstreams": []})
    assert "mesh upstream add" in mesh("upstream", "list").stdout


def test_rm_keeps_slashes_in_names(mesh: Mesh, daemon: Daemon) -> None:
    assert mesh("upstream", "rm", "org/big").exit_code == Exit.OK
    assert daemon.asked == [("DELETE", f"{PATH}/org/big", None)]


def test_help_shows_examples(mesh: Mesh) -> None:
    said = mesh("upstream", "add", "--help").stdout
    assert "--key-file" in said and "mesh upstream add http://127.0.0.1:8000 --model qwen3-32b" in said
