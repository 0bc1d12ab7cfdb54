"""`mesh share`."""

from __future__ import annotations

import click

from mesh_cli.common import connect, emit
from mesh_cli.group import Verb, json_option
from mesh_cli.units import FRACTION, SIZE
from meshd.api import contract


@click.command(
    "share",
    cls=Verb,
    examples=[
        ("mesh share", "share with the limits set before (at first: half of the cores)"),
        ("mesh share --cpu 50%", "at most half of the cores"),
        ("mesh share --cpu 0.25 --memory 4GiB", "a quarter, and engines up to 4 GiB"),
    ],
)
@click.option("--cpu", type=FRACTION, metavar="PERCENT", help="Part of the cores, like 50% or 0.5.")
@click.option("--memory", "memory_bytes", type=SIZE, metavar="SIZE", help="Ceiling of the engines, like 4GiB.")
@json_option
@click.pass_context
def command(context: click.Context, cpu: float | None, memory_bytes: int | None, as_json: bool) -> None:
    """Let the mesh use this machine, within limits. Without this nothing is shared.

    A limit that is not given stays as it was. Sharing again also ends a pause or a drain.
    """
    with connect(context) as api:
        share = api.post(contract.SHARE, {"cpu": cpu, "memory_bytes": memory_bytes})
    from mesh_cli.render.share import share_line

    emit(share, as_json, lambda: share_line(share))
