"""`mesh invite`."""

from __future__ import annotations

import sys

import click

from mesh_cli.common import connect, emit_json, say
from mesh_cli.group import Verb, json_option
from mesh_cli.units import CLASS, CLASSES, DURATION, REGION
from meshd.api import contract


@click.command(
    "invite",
    cls=Verb,
    examples=[
        ("mesh invite > invite.txt", "one machine, same site and region as this one"),
        ("mesh invite --site paris --region eu/fr/paris --clearance public", "attest where it is"),
        ("mesh invite --uses 20 --valid 7d --label team=research", "a whole class room"),
    ],
)
@click.option("--site", metavar="NAME", help="Site the newcomer is at (default: this node's).")
@click.option("--region", type=REGION, help="Jurisdiction it is in (default: this node's).")
@click.option(
    "--clearance",
    type=CLASS,
    metavar="CLASS",
    default="internal",
    show_default=True,
    help=f"Highest class it may run: {CLASSES}.",
)
@click.option(
    "--valid", "valid_s", type=DURATION, default="24h", show_default=True, metavar="TIME", help="How long it is good."
)
@click.option("--uses", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Machines it admits.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Attested label; may be repeated.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    site: str | None,
    region: str | None,
    clearance: str,
    valid_s: float,
    uses: int,
    labels: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make an invite for another machine. It is a secret: whoever holds it may join.

    In a pipe or a file only the invite itself is printed.
    """
    _check(labels)
    with connect(context) as api:
        here = {} if site and region else api.get(contract.STATUS)["me"]
        body = {
            "site": site or here["site"],
            "region": region or here["region"],
            "clearance": clearance,
            "valid_s": valid_s,
            "uses": uses,
            "labels": list(labels),
        }
        answer = api.post(contract.INVITES, body)
    if as_json:
        emit_json(answer)
    else:
        _print(answer["invite"], body)


def _check(labels: tuple[str, ...]) -> None:
    for label in labels:
        if not all(label.partition("=")[::2]):
            raise click.BadParameter(f"{label!r} is not KEY=VALUE", param_hint="--label")


def _print(invite: str, body: dict[str, object]) -> None:
    from mesh_cli.render.text import age, plural

    if sys.stdout.isatty():
        admits, valid = plural(int(str(body["uses"])), "machine"), age(float(str(body["valid_s"])))
        say(f"Admits {admits} for {valid}: {body['site']}, {body['region']}, up to {body['clearance']}.")
        say("On the other machine: mesh join, and paste this. Send it by a private way.\n")
    click.echo(invite)
