"""`mesh pause`."""

from __future__ import annotations

import click

from mesh_cli.common import connect, emit
from mesh_cli.group import Verb, json_option
from meshd.api import contract


@click.command("pause", cls=Verb, examples=[("mesh pause", "Others' jobs stay away until mesh resume")])
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Take no work from others for a while; what runs goes on."""
    with connect(context) as api:
        share = api.post(contract.PAUSE)
    from mesh_cli.render.share import share_line

    emit(share, as_json, lambda: share_line(share))
