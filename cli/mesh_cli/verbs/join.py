"""`mesh join`."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from mesh_cli.common import emit_json, home_of, host_name, show
from mesh_cli.failure import Failure
from mesh_cli.group import Verb, json_option
from mesh_cli.program import offline

MAX_INVITE_BYTES = 64 * 1024


@click.command(
    "join",
    cls=Verb,
    examples=[
        ("mesh join", "asks for the invite and does not show it"),
        ("mesh join --file invite.txt", "from a file"),
        ("ssh boss mesh invite | mesh join -", "from another machine"),
    ],
)
@click.argument("source", required=False, metavar="[-]")
@click.option("--file", "file", type=click.File("rb"), metavar="FILE", help="File that holds the invite.")
@click.option("--name", metavar="NAME", help="This machine's name in the mesh (default: its host name).")
@json_option
@click.pass_context
def command(context: click.Context, source: str | None, file: BinaryIO | None, name: str | None, as_json: bool) -> None:
    """Join an organisation with an invite, read from a prompt, a pipe or a file.

    Never type an invite as an argument: other people of this machine could see it.
    """
    if source not in (None, "-"):
        raise Failure(
            "invalid_request",
            "an invite is a secret, and arguments are visible to everyone on this machine",
            hint="type mesh join and paste it when asked, or: mesh join --file invite.txt",
        )
    answer = offline(home_of(context), "join", "--name", name or host_name(), stdin=_invite(file) + "\n")
    if as_json:
        emit_json(answer)
    else:
        from mesh_cli.render.org import enrolled

        show(enrolled(answer, "joined"))


def _invite(file: BinaryIO | None) -> str:
    if file is not None:
        text = file.read(MAX_INVITE_BYTES).decode("ascii", "replace")
    elif sys.stdin.isatty():
        text = str(click.prompt("Paste the invite (it is not shown)", hide_input=True, err=True))
    else:
        text = sys.stdin.buffer.read(MAX_INVITE_BYTES).decode("ascii", "replace")
    if not text.strip():
        raise Failure("invite_invalid", "there is no invite in the input", hint="mesh invite makes one, on an issuer")
    return "".join(text.split())
