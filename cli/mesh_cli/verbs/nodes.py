"""`mesh nodes`."""

from __future__ import annotations

import click

from mesh_cli.common import connect, emit
from mesh_cli.group import Verb, json_option
from meshd.api import contract


@click.command(
    "nodes",
    cls=Verb,
    examples=[
        ("mesh nodes", "every machine that is alive or suspect"),
        ("mesh nodes --json", "with ids, addresses, GPUs and rates"),
    ],
)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """The machines of the mesh as this node sees them now."""
    with connect(context) as api:
        view = api.get(contract.NODES)
    from mesh_cli.render.nodes import node_table

    emit(view, as_json, lambda: node_table(view["nodes"]))
