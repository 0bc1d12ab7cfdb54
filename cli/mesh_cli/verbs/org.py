"""`mesh org init|show`."""

from __future__ import annotations

import getpass
import sys
import time
from pathlib import Path
from typing import Any

import click

from mesh_cli.common import connect, emit, emit_json, home_of, host_name, show
from mesh_cli.failure import Failure
from mesh_cli.group import Group, Verb, json_option
from mesh_cli.program import offline
from mesh_cli.units import CLASS, CLASSES, REGION
from meshd.api import contract


@click.group("org", cls=Group)
def command() -> None:
    """Create the organisation, or show it."""


@command.command(
    "init",
    cls=Verb,
    examples=[
        ("mesh org init acme", "asks for a passphrase, twice"),
        ("mesh org init acme --site berlin --region eu/de/berlin", "say where this machine is"),
        ("mesh org init acme --passphrase-file /run/keys/root", "without a person"),
    ],
)
@click.argument("name")
@click.option("--node-name", metavar="NAME", help="This machine's name in the mesh (default: its host name).")
@click.option("--site", metavar="NAME", default="main", show_default=True, help="A place with one LAN.")
@click.option("--region", type=REGION, default="local", show_default=True, help="Jurisdiction, like eu/de/berlin.")
@click.option(
    "--clearance",
    type=CLASS,
    metavar="CLASS",
    default="restricted",
    show_default=True,
    help=f"Highest class it may run: {CLASSES}.",
)
@click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="MESH_PASSPHRASE_FILE",
    show_envvar=True,
    help="File whose first line is the passphrase of the root key.",
)
@json_option
@click.pass_context
def init(
    context: click.Context,
    name: str,
    node_name: str | None,
    site: str,
    region: str,
    clearance: str,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Create an organisation; this machine becomes its first member and issuer.

    The root key is stored under a passphrase. Keep both: without them no new issuer can be made.
    """
    passphrase = _passphrase(passphrase_file)
    words = ("--name", name, "--node-name", node_name or host_name())
    where = ("--site", site, "--region", region, "--clearance", clearance)
    answer = offline(home_of(context), "org-init", *words, *where, stdin=passphrase + "\n")
    if as_json:
        emit_json(answer)
    else:
        from mesh_cli.render.org import enrolled

        show(enrolled({"name": name, **answer}, "created"))


@command.command("show", cls=Verb, examples=[("mesh org show", "works with and without a daemon")])
@json_option
@click.pass_context
def show_(context: click.Context, as_json: bool) -> None:
    """The organisation and this node's certificate."""
    org = _org(context)
    from mesh_cli.render.org import org_card

    emit(org, as_json, lambda: org_card(org, now=time.time()))


def _org(context: click.Context) -> dict[str, Any]:
    try:
        with connect(context) as api:
            org: dict[str, Any] = api.get(contract.STATUS)["org"]
            return org
    except Failure as failure:
        if failure.code != "not_running":
            raise
    answer = offline(home_of(context), "org-show")
    org = answer.get("org", answer)
    return {key: value for key, value in org.items() if key != "ok"}


def _passphrase(file: Path | None) -> str:
    if file is not None:
        try:
            first = file.read_text("utf-8", "surrogateescape").partition("\n")[0].rstrip("\r")
        except OSError as error:
            raise Failure("not_found", f"cannot read {file}: {error.strerror}") from None
    elif sys.stdin.isatty():
        first = _ask_twice()
    else:
        raise Failure(
            "invalid_request",
            "there is no terminal to ask for the passphrase on",
            hint="give --passphrase-file FILE, or set MESH_PASSPHRASE_FILE",
        )
    if not first:
        raise Failure("invalid_request", "the passphrase is empty", hint="a sentence is good; keep it safe")
    return first


def _ask_twice() -> str:
    first = getpass.getpass("Passphrase for the organisation's root key: ")
    if getpass.getpass("Again: ") != first:
        raise Failure("invalid_request", "the two passphrases differ", hint="try again")
    return first
