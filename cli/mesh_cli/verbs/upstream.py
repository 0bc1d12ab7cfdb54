"""`mesh upstream add|list|rm`."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from mesh_cli.common import connect, emit, emit_json, say
from mesh_cli.failure import Failure
from mesh_cli.group import Group, Verb, json_option
from meshd.api import contract

MAX_KEY_BYTES = 4096
CLASSES = ("public", "internal", "confidential", "restricted")


@click.group("upstream", cls=Group)
def command() -> None:
    """Stand in front of OpenAI-compatible servers: a rack, or a cloud endpoint, as one node of the mesh."""


@command.command(
    "add",
    cls=Verb,
    examples=[
        ("mesh upstream add http://127.0.0.1:8000 --model qwen3-32b", "a server on this machine, without a key"),
        ("mesh upstream add https://llm.example/v1 --model big --key", "asks for the key and does not show it"),
        ("mesh upstream add https://llm.example/v1 --model big --key < key.txt", "from a pipe or a file"),
        ("mesh upstream add URL --model big --class-max public", "only public data may go there"),
    ],
)
@click.argument("url")
@click.option("--model", metavar="NAME", required=True, help="What the server calls the model.")
@click.option("--name", metavar="NAME", help="What apps call it (default: as the server does).")
@click.option(
    "--class-max",
    type=click.Choice(CLASSES),
    default="internal",
    show_default=True,
    help="The highest data class that may go there.",
)
@click.option("--slots", type=click.IntRange(1, 256), default=16, show_default=True, help="Answers at once.")
@click.option(
    "--context", "context_tokens", type=click.IntRange(1), help="Tokens of prompt and answer, if it won't say."
)
@click.option("--key-file", type=click.File("rb"), metavar="FILE", help="File that holds the server's key.")
@click.option("--key", "ask_key", is_flag=True, help="Ask for the key, or read it from a pipe.")
@json_option
@click.pass_context
def add(
    context: click.Context,
    url: str,
    model: str,
    name: str | None,
    class_max: str,
    slots: int,
    context_tokens: int | None,
    key_file: BinaryIO | None,
    ask_key: bool,
    as_json: bool,
) -> None:
    """Ask a server what it can do, and offer its model on this node.

    The key stays in this node's home and is never shown. Never type it as an argument: other people of this machine
    could see it.
    """
    body = {
        "url": url,
        "model": model,
        "name": name,
        "class_max": class_max,
        "slots": slots,
        "context_tokens": context_tokens,
        "key": _key(key_file, ask_key),
    }
    with connect(context) as api:
        from mesh_cli.client import UPSTREAM_TIMEOUT_S

        if not as_json:
            say("asking the server what it can do ...")
        view = api.post(contract.UPSTREAMS, body, timeout_s=UPSTREAM_TIMEOUT_S)
    from mesh_cli.render.upstreams import upstream_added

    emit(view, as_json, lambda: upstream_added(view))


def _key(file: BinaryIO | None, ask: bool) -> str | None:
    """The key from a file, a prompt that does not show it, or a pipe; None when there is none."""
    if file is None and not ask:
        return None
    if file is not None:
        raw = file.read(MAX_KEY_BYTES + 1)
    elif sys.stdin.isatty():
        raw = str(click.prompt("Paste the key (it is not shown)", hide_input=True, err=True)).encode()
    else:
        raw = sys.stdin.buffer.read(MAX_KEY_BYTES + 1)
    key = raw.decode("ascii", "replace").strip()
    if not key or len(raw) > MAX_KEY_BYTES:
        raise Failure("invalid_request", "there is no key in the input, or more than a key", hint="one line, ASCII")
    return key


@command.command(
    "list", cls=Verb, examples=[("mesh upstream list", "what this node stands in front of, and how it is")]
)
@json_option
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """The upstreams of this node."""
    with connect(context) as api:
        view = api.get(contract.UPSTREAMS)
    from mesh_cli.render.upstreams import upstream_table

    emit(view, as_json, lambda: upstream_table(view["upstreams"]))


@command.command("rm", cls=Verb, examples=[("mesh upstream rm qwen3-32b", "its key is forgotten as well")])
@click.argument("name")
@json_option
@click.pass_context
def rm(context: click.Context, name: str, as_json: bool) -> None:
    """Stand in front of it no longer; answers that run there go on elsewhere."""
    with connect(context) as api:
        api.delete(contract.UPSTREAM, name)
    if as_json:
        emit_json({"ok": True, "name": name})
    else:
        click.echo(f"{name} is not offered here any more")
