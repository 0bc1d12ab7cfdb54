"""`mesh status`."""

from __future__ import annotations

import time

import click

from mesh_cli.common import connect, emit
from mesh_cli.group import Verb, json_option
from meshd.api import contract


@click.command(
    "status",
    cls=Verb,
    examples=[
        ("mesh status", "the screen"),
        ("mesh status --json | jq .me.state", "for scripts"),
        ("mesh --home /srv/b status", "another node of this machine"),
    ],
)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """This node, its peers, running jobs, models, engines and limits, on one screen."""
    with connect(context) as api:
        view = api.get(contract.STATUS)
    from mesh_cli.render.status import status_screen

    emit(view, as_json, lambda: status_screen(view, now=time.time()))
