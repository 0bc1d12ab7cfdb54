"""What a person at a terminal gets: colour, words around an invite, questions that do not echo; and no more than that
in a pipe. Each runs in a pseudo-terminal."""

from __future__ import annotations

import codecs
import os
import pty
import select
import subprocess
import sys
import termios
from pathlib import Path

from mesh_cli.exits import Exit

from tests.cli.contract_server import BROKEN_STREAM, Daemon, chunk

READ_S = 60.0
MESH = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed here is a signal there
from mesh_cli.main import main
main()
"""


class Terminal:
    """A pseudo-terminal of 80 columns with `mesh` in it; ``pipe`` leads stdout elsewhere."""

    def __init__(self, home: Path, *arguments: str, pipe: bool = False, **environment: str) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end within a character
        env = {**os.environ, "MESH_HOME": str(home), "TERM": "xterm", **environment}
        for name in {"NO_COLOR", "COLUMNS", "MESH_PASSPHRASE_FILE"} - set(environment):
            env.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", MESH, *arguments],
            stdin=slave,
            stdout=subprocess.PIPE if pipe else slave,
            stderr=slave,
            env=env,
            start_new_session=True,
        )
        os.close(slave)

    def until(self, text: str) -> str:
        """Read until ``text`` is on the screen."""
        while text not in self.seen:
            assert self._read(), f"ended without {text!r}: {self.seen!r}"
        return self.seen

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> tuple[int, str, str]:
        """Exit status, the screen, and what went down the pipe."""
        piped, _ = self.process.communicate(timeout=READ_S) if self.process.stdout else (b"", b"")
        while self._read():
            pass
        os.close(self._master)
        return self.process.wait(READ_S), self.seen.replace("\r\n", "\n"), piped.decode()

    def _read(self) -> bool:
        if not select.select([self._master], [], [], READ_S)[0]:
            self.process.kill()
            raise AssertionError(f"nothing more came after {self.seen!r}")
        try:
            part = os.read(self._master, 65536)
        except OSError:  # how Linux says that the other side of a terminal has closed
            return False
        self.seen += self._decoder.decode(part)
        return bool(part)


def test_status_is_coloured_unless_unwanted(home: Path) -> None:
    assert "\x1b[" in Terminal(home, "status").end()[1]
    for unwanted in (Terminal(home, "status", NO_COLOR="1"), Terminal(home, "status", TERM="dumb")):
        status, screen, _ = unwanted.end()
        assert status == Exit.OK
        assert "\x1b" not in screen
        assert max(map(len, screen.splitlines())) <= 80


def test_an_invite_has_words_around_it_on_a_terminal(home: Path) -> None:
    _, screen, _ = Terminal(home, "invite").end()
    assert screen.startswith("Admits 1 machine for 1d: berlin, eu/de/berlin, up to internal.\n")
    assert screen.endswith("\n\nmesh1-secret\n")


def test_an_invite_in_a_pipe_stands_alone(home: Path) -> None:
    assert Terminal(home, "invite", pipe=True).end() == (Exit.OK, "", "mesh1-secret\n")


def test_a_reroute_is_dim_and_on_a_line_of_its_own(home: Path) -> None:
    _, screen, _ = Terminal(home, "run", "x").end()
    assert screen == "The Rhine, \n\x1b[2m[goes on at ceres two from token 34 (lost )]\x1b[0m\nthe Elbe.\n"


def test_a_model_cannot_steer_the_terminal(home: Path, daemon: Daemon) -> None:
    daemon.stream = (chunk("a\x1b]0;owned\x07b\tc\n"), "data: [DONE]")
    assert "\x1b" not in Terminal(home, "run", "x").end()[1]
    assert Terminal(home, "run", "x", pipe=True).end()[2] == "a\x1b]0;owned\x07b\tc\n"


def test_run_without_a_prompt_says_how(home: Path) -> None:
    status, screen, _ = Terminal(home, "run", NO_COLOR="1").end()
    assert status == Exit.USAGE
    assert screen == 'mesh: give a prompt, like mesh run "Hello", or pipe one in\n  hint: see mesh run --help\n'


def test_the_passphrase_is_asked_twice_and_not_shown(home: Path) -> None:
    terminal = Terminal(home, "org", "init", "acme")
    terminal.until("root key: ")
    terminal.type("correct horse\n")
    terminal.until("Again: ")
    terminal.type("battery staple\n")
    status, screen, _ = terminal.end()
    assert status == Exit.USAGE
    assert "the two passphrases differ" in screen
    assert "horse" not in screen
    assert "staple" not in screen


def test_ctrl_c_at_a_question_ends_quietly(home: Path) -> None:
    terminal = Terminal(home, "join")
    terminal.until("not shown")
    terminal.type("\x03")
    status, screen, _ = terminal.end()
    assert status == Exit.INTERRUPTED
    assert "Traceback" not in screen


def test_chat_survives_a_failed_answer_and_ctrl_c_at_an_answer(home: Path, daemon: Daemon) -> None:
    terminal = Terminal(home, "chat", NO_COLOR="1")
    terminal.until("> ")
    daemon.stream = BROKEN_STREAM
    terminal.type("one\n")
    terminal.until("hint: mesh nodes shows why")
    daemon.stream = (chunk("The Elbe"), "hold")
    terminal.type("two\n")
    terminal.until("The Elbe")
    terminal.type("\x03")
    terminal.until("stopped")
    daemon.stream = (chunk("Fine."), "data: [DONE]")
    terminal.type("three\n")
    terminal.until("Fine.")
    terminal.type("/quit\n")
    assert terminal.end()[0] == Exit.OK
    last = [body for _, path, body in daemon.asked if path == "/v1/chat/completions"][-1]
    assert [m["content"] for m in last["messages"]] == ["three"]
