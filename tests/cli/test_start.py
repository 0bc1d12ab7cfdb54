"""What `mesh --help` loads and says, and that every verb is there with its examples."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from mesh_cli.exits import EXIT_OF, MEANING, Exit
from mesh_cli.main import ENTRIES, cli

from meshd.core import errors

HEAVY = ("trio", "libp2p", "httpx", "rich", "starlette", "msgpack", "nacl", "asyncio", "meshd.node", "meshd.app")

PROBE = """
import sys
from mesh_cli.main import main
sys.argv = ["mesh", {argument!r}]
try:
    main()
finally:
    print("LOADED", *[m for m in sys.modules if m.split(".")[0] in {heavy!r} or m in {heavy!r}], file=sys.stderr)
    print("VERBS", *[m for m in sys.modules if m.startswith("mesh_cli.verbs.")], file=sys.stderr)
"""


def probe(argument: str) -> str:
    script = PROBE.format(argument=argument, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_start_is_light(argument: str) -> None:
    assert probe(argument).splitlines() == ["LOADED", "VERBS"]


def test_help_documents_every_exit_code() -> None:
    text = CliRunner().invoke(cli, ["--help"]).output
    assert set(MEANING) == set(Exit)
    for code, meaning in MEANING.items():
        assert f"  {int(code)} " in text
        assert meaning in text


def test_every_error_code_has_an_exit_status() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.MeshError)]
    missing = {k.code for k in kinds} - set(EXIT_OF) - {errors.MeshError.code}
    assert not missing


def leaves() -> list[list[str]]:
    context = click.Context(cli)
    found = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        inner = list(command.commands) if isinstance(command, click.Group) else []
        found += [[name, sub] for sub in inner] or [[name]]
    return found


@pytest.mark.parametrize("words", leaves(), ids=" ".join)
def test_every_verb_has_help_with_an_example(words: list[str]) -> None:
    result = CliRunner().invoke(cli, [*words, "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"mesh {words[0]}" in result.output.split("Examples:")[1]
    assert "--home DIR" in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_summaries_in_the_table_end_in_a_stop_and_fit() -> None:
    for entry in ENTRIES:
        assert entry.summary.endswith(".")
        assert len(entry.summary) < 66


def test_a_typo_names_the_near_verb() -> None:
    result = CliRunner().invoke(cli, ["sttus"])
    assert result.exit_code == Exit.USAGE
    assert result.stderr.splitlines() == ["mesh: no command 'sttus'; did you mean status?", "  hint: see mesh --help"]


def test_a_typo_in_a_group_and_in_an_option() -> None:
    assert "did you mean list?" in CliRunner().invoke(cli, ["model", "lst"]).stderr
    assert "Did you mean '--cpu'" in CliRunner().invoke(cli, ["share", "--cpus", "3"]).stderr


def test_no_verb_shows_the_help() -> None:
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == Exit.USAGE
    assert "Exit codes:" in result.output


def test_help_as_people_type_it() -> None:
    assert CliRunner().invoke(cli, ["help", "run"]).output == CliRunner().invoke(cli, ["run", "--help"]).output
    assert CliRunner().invoke(cli, ["help"]).exit_code == Exit.OK
