"""`mesh resume`."""

from __future__ import annotations

import click

from mesh_cli.common import connect, emit
from mesh_cli.group import Verb, json_option
from meshd.api import contract


@click.command("resume", cls=Verb, examples=[("mesh resume", "Take work again, within the limits of mesh share")])
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """End a pause or a drain."""
    with connect(context) as api:
        share = api.post(contract.RESUME)
    from mesh_cli.render.share import share_line

    emit(share, as_json, lambda: share_line(share))
