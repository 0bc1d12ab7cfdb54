"""`mesh up`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from mesh_cli.common import emit_json, home_of
from mesh_cli.failure import Failure
from mesh_cli.group import Verb, json_option
from mesh_cli.home import Home
from mesh_cli.program import command_line, failed, last_object, log_since, start
from mesh_cli.units import DURATION
from meshd.api import contract

POLL_S = 0.1
PROBE_TIMEOUT_S = 2.0


@click.command(
    "up",
    cls=Verb,
    examples=[
        ("mesh up", "start it in the background; its log is HOME/daemon.log"),
        ("mesh up --foreground", "run it here, as a service manager wants it"),
    ],
)
@click.option("--foreground", is_flag=True, help="Become the daemon instead of starting one.")
@click.option(
    "--timeout", "timeout_s", type=DURATION, default="20s", show_default=True, metavar="TIME", help="How long to wait."
)
@json_option
@click.pass_context
def command(context: click.Context, foreground: bool, timeout_s: float, as_json: bool) -> None:
    """Start the daemon and wait until it answers. When it is up already, say so."""
    home = home_of(context)
    if not home.path.is_dir():
        home.daemon()  # says what is wrong with the home
    running = _running(home)
    if running is not None:
        _report(running, "already up", as_json)
    elif foreground:
        line = command_line(home, "run")
        os.execv(line[0], line)
    else:
        with _progress():
            status = _start(home, timeout_s)
        _report(status, "up", as_json)


def _running(home: Home) -> dict[str, Any] | None:
    """The status of a daemon that is up already. A home that cannot be used is the daemon's to explain."""
    try:
        return _status(home)
    except Failure as failure:
        if failure.code != "home_unusable":
            raise
        return None


def _start(home: Home, timeout_s: float) -> dict[str, Any]:
    child, begin = start(home)
    deadline = time.monotonic() + timeout_s
    while True:
        gone = child.poll() is not None
        try:
            status = None if gone else _status(home)
            trouble = None
        except Failure as failure:  # the token may be written after daemon.json; only the last word counts
            status, trouble = None, failure
        if status is not None:
            return status
        if gone:
            raise _died(home, child, begin)
        if time.monotonic() > deadline:
            raise trouble or _silent(home, timeout_s)
        time.sleep(POLL_S)


def _silent(home: Home, timeout_s: float) -> Failure:
    return Failure(
        "timeout", f"the daemon does not answer after {timeout_s:g} s", hint=f"it may yet; its log is {home.log}"
    )


def _died(home: Home, child: subprocess.Popen[bytes], begin: int) -> Failure:
    log = log_since(home, begin)
    failure = failed(last_object(log), "run", log, child.returncode)
    if not failure.hint:
        failure.hint = f"the log is {home.log}"
    return failure


def _status(home: Home) -> dict[str, Any] | None:
    """The daemon's status when it answers; None while it does not run, or does not answer yet."""
    try:
        home.daemon()
        from mesh_cli.client import Api

        with Api(home, answer_timeout_s=PROBE_TIMEOUT_S) as api:
            api.get(contract.HEALTH)
            return api.get(contract.STATUS)
    except Failure as failure:
        if failure.code in ("not_running", "timeout", "truncated"):
            return None
        raise


def _report(status: dict[str, Any], word: str, as_json: bool) -> None:
    if as_json:
        emit_json({"ok": True, "api_url": status["api_url"], "already": word != "up"})
    else:
        click.echo(f"{word}: {status['me']['name']} at {status['api_url']}")


@contextmanager
def _progress() -> Iterator[None]:
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status("starting the daemon ...", spinner="dots"):
        yield
