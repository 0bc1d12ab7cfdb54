"""The one exception that ends a verb with a message, and how it is shown."""

from __future__ import annotations

import os
from typing import Any

import click

from mesh_cli.exits import Exit, exit_of


class Failure(Exception):
    """A verb cannot do what was asked. ``code`` is meshd's stable error code; it decides the exit status,
    unless ``exit`` says otherwise."""

    def __init__(self, code: str, message: str, *, hint: str = "", exit: Exit | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.exit = exit_of(code) if exit is None else exit


def complain(message: str, hint: str = "") -> None:
    """One line on stderr that says what is wrong, and one that says what to do about it."""
    click.echo(f"{paint('mesh:', fg='red')} {one_line(message)}", err=True)
    if hint:
        click.echo(paint(f"  hint: {one_line(hint)}", dim=True), err=True)


def wants_colour() -> bool:
    """Whether the person's environment allows colour at all; whether it is a terminal is asked elsewhere."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, **style: Any) -> str:
    """``text`` in click's ``style`` where colour is wanted. click itself drops it when this is no terminal."""
    return click.style(text, **style) if wants_colour() else text


def one_line(text: str) -> str:
    """``text`` on one line, without control characters: it may come from another machine."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
