"""`mesh drain`."""

from __future__ import annotations

import click

from mesh_cli.common import connect, emit, say
from mesh_cli.group import Verb, json_option
from mesh_cli.units import DURATION
from meshd.api import contract

GRACE_S = 30.0
"""Handing over what still runs at the deadline takes the daemon a moment."""


@click.command(
    "drain",
    cls=Verb,
    examples=[
        ("mesh drain", "finish what runs, at most half a minute, then hand over"),
        ("mesh drain --deadline 10m && mesh down", "leave quietly"),
    ],
)
@click.option(
    "--deadline",
    "deadline_s",
    type=DURATION,
    default="30s",
    show_default=True,
    metavar="TIME",
    help="When to hand over.",
)
@json_option
@click.pass_context
def command(context: click.Context, deadline_s: float, as_json: bool) -> None:
    """Take nothing new, finish what runs; what still runs at the deadline goes on elsewhere.

    Returns when this machine runs nothing for others. mesh resume ends it.
    """
    with connect(context) as api:
        if not as_json:
            say(f"draining, at most {deadline_s:g} s ...")
        share = api.post(contract.DRAIN, {"deadline_s": deadline_s}, timeout_s=deadline_s + GRACE_S)
    from mesh_cli.render.share import share_line

    emit(share, as_json, lambda: share_line(share))
