"""Entry point of `meshd`: run a node, or do one thing to its home and print one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from meshd.core.errors import ConfigInvalid, MeshError

DEFAULT_HOME = Path("~/.meshd")
FAILED = 1


@click.group()
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    envvar="MESH_HOME",
    default=DEFAULT_HOME,
    show_default=True,
    help="The node's directory.",
)
@click.pass_context
def main(context: click.Context, home: Path) -> None:
    """The mesh daemon. People use `mesh`; this is what it calls.

    Every operation but `run` prints one JSON object on standard output.
    """
    context.obj = home.expanduser().absolute()


@main.command()
@click.pass_obj
def run(home: Path) -> None:
    """Run the node in the foreground. The log goes to standard error, and so does, as its last line, a JSON object
    that says why when the node cannot run."""
    _finish(lambda: _run(home), sys.stderr.write)


def _run(home: Path) -> dict[str, Any]:
    import trio

    from meshd.app import logs
    from meshd.app.config import load_config
    from meshd.app.daemon import run_daemon
    from meshd.store.home import open_home

    opened = open_home(home)
    config = load_config(opened.config)
    logs.begin(sys.stderr, config.log.level)
    os.umask(0o077)
    trio.run(run_daemon, opened, config)
    return {}


@main.command("org-init")
@click.option("--name", required=True)
@click.option("--node-name", required=True)
@click.option("--site", required=True)
@click.option("--region", required=True)
@click.option("--clearance", default="restricted", show_default=True)
@click.pass_obj
def org_init(home: Path, /, name: str, **founder: str) -> None:
    """Create an organisation; the passphrase of its root key is read from standard input."""
    from meshd.app import ops

    _finish(lambda: ops.org_init(home, name, founder))


@main.command()
@click.option("--name", required=True)
@click.pass_obj
def join(home: Path, name: str) -> None:
    """Join the organisation of the invite on standard input."""
    from meshd.app import ops

    _finish(lambda: ops.join(home, name))


@main.command("org-show")
@click.pass_obj
def org_show(home: Path) -> None:
    """Show the organisation and this node's place in it."""
    from meshd.app import ops

    _finish(lambda: ops.org_show(home))


@main.command("token-show")
@click.pass_obj
def token_show(home: Path) -> None:
    """Show the token of the local API."""
    from meshd.app import ops

    _finish(lambda: ops.token_show(home))


@main.command("token-rotate")
@click.pass_obj
def token_rotate(home: Path) -> None:
    """Make a new token of the local API; the old one stops working."""
    from meshd.app import ops

    _finish(lambda: ops.token_rotate(home))


@main.command()
@click.pass_obj
def doctor(home: Path) -> None:
    """Check this machine and home."""
    from meshd.app.doctor import examine

    _finish(lambda: {"checks": examine(home)})


def _finish(operation: Callable[[], dict[str, Any]], say: Callable[[str], object] = sys.stdout.write) -> None:
    """Do it and say how it went, as one JSON object; exit status 1 when it failed by a MeshError."""
    try:
        result = operation()
    except* MeshError as group:
        say(json.dumps(_told(_first(group))) + "\n")
        sys.exit(FAILED)
    else:
        if result:
            say(json.dumps({"ok": True, **result}) + "\n")


def _first(group: BaseExceptionGroup[MeshError]) -> MeshError:
    """The first error inside nested groups."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _told(error: MeshError) -> dict[str, Any]:
    told: dict[str, Any] = {"ok": False, "code": error.code, "message": error.message, "hint": error.hint}
    if isinstance(error, ConfigInvalid):
        told["problems"] = list(error.problems)
    return told


if __name__ == "__main__":
    main()
