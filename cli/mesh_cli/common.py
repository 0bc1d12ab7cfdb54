"""What most verbs begin and end with: find the home, talk to the daemon, print text or JSON."""

from __future__ import annotations

import json
import platform
import re
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mesh_cli.failure import wants_colour
from mesh_cli.group import state_of
from mesh_cli.home import Home, locate

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mesh_cli.client import Api

PIPE_WIDTH = 120
"""Columns when nobody looks: wide enough that names are whole."""


def home_of(context: click.Context) -> Home:
    """The home that the options and the environment name."""
    return locate(state_of(context).home)


def host_name() -> str:
    """This machine's host name as a node name: letters, digits, ``. _ -``."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", platform.node().partition(".")[0])[:63].strip("-") or "node"


def connect(context: click.Context) -> Api:
    """The running daemon's API; Failure when there is none. httpx is loaded here, not at start."""
    home = home_of(context)
    home.daemon()  # without a daemon the answer needs no HTTP client, and comes at once
    from mesh_cli.client import Api

    return Api(home)


def emit_json(data: Any) -> None:
    """JSON on stdout, indented for a reader."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=not sys.stdout.isatty()))


def emit(data: Any, as_json: bool, render: Callable[[], RenderableType]) -> None:
    """``data`` as JSON, or what ``render`` makes of it, as wide as the terminal."""
    if as_json:
        emit_json(data)
    else:
        show(render())


def show(renderable: RenderableType) -> None:
    """Print something rendered: coloured on a terminal that wants colour, plain elsewhere."""
    from mesh_cli.render.text import as_text

    tty = sys.stdout.isatty()
    colour = tty and wants_colour()
    width = shutil.get_terminal_size((80 if tty else PIPE_WIDTH, 24)).columns
    click.echo(as_text(renderable, width=width, colour=colour), nl=False, color=colour)


def say(text: str) -> None:
    """A word on stderr about what is going on."""
    click.echo(text, err=True)
