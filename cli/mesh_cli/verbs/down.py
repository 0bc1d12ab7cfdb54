"""`mesh down`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from mesh_cli.common import connect
from mesh_cli.failure import Failure
from mesh_cli.group import Verb
from mesh_cli.home import pid_alive
from mesh_cli.units import DURATION
from meshd.api import contract

if TYPE_CHECKING:
    from mesh_cli.client import Api

POLL_S = 0.05


def _ask(api: Api, timeout_s: float) -> None:
    try:
        api.post(contract.SHUTDOWN, timeout_s=timeout_s)
    except Failure as failure:
        if failure.code not in ("truncated", "not_running"):  # it may be gone before its answer is through
            raise


@click.command("down", cls=Verb, examples=[("mesh down", "stop; jobs that run here go on elsewhere")])
@click.option(
    "--timeout", "timeout_s", type=DURATION, default="20s", show_default=True, metavar="TIME", help="How long to wait."
)
@click.pass_context
def command(context: click.Context, timeout_s: float) -> None:
    """Stop the daemon, and wait until it has gone."""
    with connect(context) as api:
        pid = api.daemon.pid
        _ask(api, timeout_s)
    deadline = time.monotonic() + timeout_s
    while pid_alive(pid):
        if time.monotonic() > deadline:
            raise Failure("timeout", f"the daemon still runs after {timeout_s:g} s", hint=f"end it with: kill {pid}")
        time.sleep(POLL_S)
    click.echo("down")
