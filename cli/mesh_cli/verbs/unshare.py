"""`mesh unshare`."""

from __future__ import annotations

import click

from mesh_cli.common import connect, emit
from mesh_cli.group import Verb, json_option
from meshd.api import contract


@click.command("unshare", cls=Verb, examples=[("mesh unshare", "Nothing is shared until the next mesh share")])
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Stop letting the mesh use this machine. Your own jobs still run."""
    with connect(context) as api:
        share = api.post(contract.UNSHARE)
    from mesh_cli.render.share import share_line

    emit(share, as_json, lambda: share_line(share))
