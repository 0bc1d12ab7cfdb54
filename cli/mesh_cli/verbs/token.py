"""`mesh token show|rotate`."""

from __future__ import annotations

import click

from mesh_cli.common import emit_json, home_of
from mesh_cli.failure import Failure
from mesh_cli.group import Group, Verb, json_option
from mesh_cli.program import offline


@click.group("token", cls=Group)
def command() -> None:
    """Show or replace the token that apps give to the local API."""


@command.command("show", cls=Verb, examples=[("export OPENAI_API_KEY=$(mesh token show)", "for an OpenAI client")])
@json_option
@click.pass_context
def show(context: click.Context, as_json: bool) -> None:
    """Print the token."""
    _print(offline(home_of(context), "token-show"), as_json)


@command.command("rotate", cls=Verb, examples=[("mesh token rotate", "apps with the old one are refused from now on")])
@json_option
@click.pass_context
def rotate(context: click.Context, as_json: bool) -> None:
    """Replace the token by a new one and print it."""
    _print(offline(home_of(context), "token-rotate"), as_json)


def _print(answer: dict[str, object], as_json: bool) -> None:
    if not isinstance(answer.get("token"), str):
        raise Failure("mesh_error", "the daemon program gave no token")
    if as_json:
        emit_json({"token": answer["token"]})
    else:
        click.echo(answer["token"])
