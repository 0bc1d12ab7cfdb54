"""Verbs that run the daemon program: what they pass on, that secrets go in by stdin only, and how failures look."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mesh_cli import program
from mesh_cli.exits import Exit
from mesh_cli.main import cli

FAKE = Path(__file__).with_name("fake_program.py")


class Fake:
    """A home whose daemon program is the fake one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.plan: dict[str, dict[str, Any]] = {}

    def answer(self, operation: str, returns: int = 0, prints: str | None = None, **fields: Any) -> None:
        self.plan[operation] = {"prints": prints or json.dumps({"ok": returns == 0, **fields}), "returns": returns}

    def given(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "given.jsonl").read_text().splitlines()]

    def mesh(self, *arguments: str, stdin: str | None = None, **environment: str) -> Result:
        (self.folder / "plan.json").write_text(json.dumps(self.plan))
        env: dict[str, str | None] = {"MESH_HOME": str(self.home), "MESH_PASSPHRASE_FILE": None, **environment}
        return CliRunner(env=env).invoke(cli, list(arguments), input=stdin)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setattr(program, "PROGRAM", (sys.executable, "-S", str(FAKE)))
    return Fake(tmp_path)


def test_org_init_passes_the_passphrase_by_stdin(fake: Fake, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\nsecond line\n")
    fake.answer("org-init", name="acme", node_name="atlas", site="berlin", region="eu/de", clearance="restricted")
    words = ("org", "init", "acme", "--node-name", "atlas", "--site", "berlin", "--region", "eu/de")
    result = fake.mesh(*words, "--passphrase-file", str(secret))
    assert result.stdout == "created acme as atlas (berlin, eu/de, up to restricted)\nnext: mesh up\n"
    expected = "org-init --name acme --node-name atlas --site berlin --region eu/de --clearance restricted"
    assert fake.given() == [{"arguments": expected.split(), "stdin": "correct horse\n"}]


def test_org_init_takes_the_file_from_the_environment(fake: Fake, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse")
    fake.answer("org-init")
    assert fake.mesh("org", "init", "acme", MESH_PASSPHRASE_FILE=str(secret)).exit_code == Exit.OK
    assert fake.given()[0]["stdin"] == "correct horse\n"


def test_org_init_without_terminal_or_file_says_how(fake: Fake) -> None:
    result = fake.mesh("org", "init", "acme")
    assert result.exit_code == Exit.USAGE
    assert "--passphrase-file" in result.stderr


def test_an_empty_passphrase_is_refused(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("\n")
    assert fake.mesh("org", "init", "acme", "--passphrase-file", str(tmp_path / "secret")).exit_code == Exit.USAGE


@pytest.mark.parametrize("how", ["pipe", "dash", "file"])
def test_join_reads_the_invite_from_everywhere_but_arguments(fake: Fake, tmp_path: Path, how: str) -> None:
    (tmp_path / "invite").write_text("mesh1-secret\n")
    fake.answer("join", name="acme", node_name="boreas")
    words = {"pipe": (), "dash": ("-",), "file": ("--file", str(tmp_path / "invite"))}[how]
    result = fake.mesh("join", *words, "--name", "boreas", stdin="mesh1-\nsecret\n")
    assert result.exit_code == Exit.OK
    assert result.stdout.startswith("joined acme as boreas\n")
    assert fake.given() == [{"arguments": ["join", "--name", "boreas"], "stdin": "mesh1-secret\n"}]


def test_an_invite_as_argument_is_refused_with_the_right_way(fake: Fake) -> None:
    result = fake.mesh("join", "mesh1-secret")
    assert result.exit_code == Exit.USAGE
    assert "mesh1-secret" not in result.output
    assert "--file invite.txt" in result.stderr


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("invite_expired", Exit.REFUSED),
        ("invite_used", Exit.REFUSED),
        ("clock_wrong", Exit.REFUSED),
        ("already_done", Exit.ALREADY_DONE),
        ("unreachable", Exit.TIMEOUT),
        ("home_unusable", Exit.HOME),
    ],
)
def test_the_programs_failure_is_shown(fake: Fake, code: str, expected: Exit) -> None:
    fake.answer("join", returns=1, code=code, message="it is over", hint="ask for another")
    result = fake.mesh("join", stdin="mesh1-secret")
    assert result.exit_code == expected
    assert result.stderr == "mesh: it is over\n  hint: ask for another\n"


def test_a_program_that_says_nothing_sensible(fake: Fake) -> None:
    fake.answer("join", returns=3, prints="Segmentation fault")
    result = fake.mesh("join", stdin="mesh1-secret")
    assert result.exit_code == Exit.UNEXPECTED
    assert "Traceback" not in result.output


def test_success_with_a_bad_status_is_no_success(fake: Fake) -> None:
    fake.plan["token-show"] = {"prints": json.dumps({"ok": True, "token": "t"}), "returns": 1}
    assert fake.mesh("token", "show").exit_code == Exit.UNEXPECTED


def test_token_show_and_rotate(fake: Fake) -> None:
    fake.answer("token-show", token="tok-1")
    fake.answer("token-rotate", token="tok-2")
    assert fake.mesh("token", "show").stdout == "tok-1\n"
    assert json.loads(fake.mesh("token", "show", "--json").stdout) == {"token": "tok-1"}
    assert fake.mesh("token", "rotate").stdout == "tok-2\n"


def test_org_show_without_a_daemon(fake: Fake) -> None:
    from tests.cli.views import ORG, plain

    fake.answer("org-show", **plain(ORG))
    assert fake.mesh("org", "show").stdout.startswith("acme\n  root key     5Fh9kQ2mWJ3\n")
    assert json.loads(fake.mesh("org", "show", "--json").stdout) == plain(ORG)


def test_doctor_without_a_daemon(fake: Fake) -> None:
    fake.answer("doctor", checks=[{"name": "home", "ok": True, "detail": "private to you", "hint": ""}])
    result = fake.mesh("doctor")
    assert result.exit_code == Exit.UNHEALTHY
    assert result.stdout.splitlines()[0] == "ok  home    private to you"
    assert "start it with: mesh up" in result.stdout
    answer = json.loads(fake.mesh("doctor", "--json").stdout)
    assert answer["ok"] is False
    assert [c["name"] for c in answer["checks"]] == ["home", "daemon"]


def test_doctor_on_a_broken_home(fake: Fake) -> None:
    fake.answer("doctor", returns=1, code="home_unusable", message="the key is readable by all", hint="chmod 600 key")
    result = fake.mesh("doctor")
    assert result.exit_code == Exit.UNHEALTHY
    assert "hint: chmod 600 key" in result.stdout


def test_an_invite_of_garbage_reaches_the_program_as_text(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "invite").write_bytes(b"\xff\x00\xfe" * 100)
    fake.answer("join", returns=1, code="invite_invalid", message="not an invite")
    assert fake.mesh("join", "--file", str(tmp_path / "invite")).exit_code == Exit.REFUSED
    assert fake.mesh("join", stdin=" \n").exit_code == Exit.REFUSED


def test_the_real_program_founds_an_organisation_and_shows_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("correct horse battery staple\n")
    env = {"MESH_HOME": str(tmp_path / "real"), "COLUMNS": "80"}

    def mesh(*arguments: str) -> Result:
        return CliRunner(env=env).invoke(cli, list(arguments))

    words = ("org", "init", "acme", "--node-name", "atlas", "--region", "eu/de", "--passphrase-file")
    made = mesh(*words, str(tmp_path / "secret"))
    assert made.output == "created acme as atlas (main, eu/de, up to restricted)\nnext: mesh up\n"
    assert mesh(*words, str(tmp_path / "secret")).exit_code == Exit.ALREADY_DONE
    shown = mesh("org", "show").output
    assert shown.startswith("acme\n  root key     ")
    assert "\n  region       eu/de\n" in shown
    assert "issuer" not in shown
    assert mesh("token", "show").exit_code == Exit.OK
    assert mesh("status").exit_code == Exit.NOT_RUNNING
