"""The options that `mesh run` and `mesh chat` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mesh_cli.units import CLASS, CLASSES, REGION, SEED

_OPTIONS = (
    click.option("-m", "--model", metavar="NAME", help="Model (default: the first of mesh model list)."),
    click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="End after N tokens."),
    click.option("--temperature", type=click.FloatRange(0, 5), metavar="T", help="0 always takes the likeliest."),
    click.option("--top-p", type=click.FloatRange(0, 1), metavar="P", help="Draw from the likeliest part P."),
    click.option("--seed", type=SEED, metavar="N", help="Same seed, same draw."),
    click.option("--exact", is_flag=True, help="If rerouted, go on bit-identically (slower replay)."),
    click.option("--class", "data_class", type=CLASS, metavar="CLASS", help=f"How sensitive it is: {CLASSES}."),
    click.option(
        "--region", "regions", type=REGION, metavar="REGION", multiple=True, help="Run only there; may be repeated."
    ),
)


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the verb gets them as keywords that fit ``Options``."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
