"""One question to the mesh, shared by `mesh run` and `mesh chat`: the request, and the answer on the terminal."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from mesh_cli.failure import Failure, one_line, paint
from mesh_cli.stream import Notice, Outcome, Piece, pieces

if TYPE_CHECKING:
    from mesh_cli.client import Api

CHAT_PATH: Final = "/v1/chat/completions"
TEXT_PATH: Final = "/v1/completions"
MODELS_PATH: Final = "/v1/models"


@dataclass(frozen=True, slots=True)
class Options:
    """What the person chose; None leaves it to the daemon."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    exact: bool = False
    data_class: str | None = None
    regions: tuple[str, ...] = ()

    def body(self, model: str) -> dict[str, Any]:
        """The request without its prompt."""
        mesh = {"exact": self.exact or None, "class": self.data_class, "regions": list(self.regions) or None}
        fields = {
            "model": model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "mesh": {k: v for k, v in mesh.items() if v is not None} or None,
        }
        return {k: v for k, v in fields.items() if v is not None}


def choose_model(api: Api, wanted: str | None) -> str:
    """``wanted``, else the first model of the mesh. Failure model_not_found when there is none."""
    if wanted:
        return wanted
    names = [str(m["id"]) for m in api.get(MODELS_PATH).get("data", ())]
    if not names:
        raise Failure("model_not_found", "no node of the mesh offers a model", hint="mesh model add FILE")
    return names[0]


def ask(api: Api, path: str, body: dict[str, Any], *, quiet: bool = False) -> tuple[str, Outcome]:
    """Send the question and print the answer as it comes (nothing when ``quiet``). Returns the job's id and the
    outcome. An answer that breaks off raises Failure, after a line end so that the message stands alone."""
    outcome = Outcome()
    with api.stream(path, body) as (job, lines):
        try:
            for event in pieces(lines, outcome):
                if not quiet:
                    _show(event, fresh_line=not outcome.text or outcome.text.endswith("\n"))
        finally:
            if not quiet and outcome.text and not outcome.text.endswith("\n"):
                click.echo()
    return job, outcome


def _show(event: Piece | Notice, *, fresh_line: bool) -> None:
    if isinstance(event, Notice):
        if sys.stdout.isatty() and not fresh_line:
            click.echo(err=True)  # the terminal's cursor stands in the middle of the answer
        click.echo(paint(f"[{one_line(event.text)}]", dim=True), err=True)
    else:
        click.echo(printable(event.text), nl=False)
        sys.stdout.flush()


def printable(text: str) -> str:
    """``text`` as a terminal may get it: a model must not move the cursor or set the title. In a pipe, as it is."""
    if not sys.stdout.isatty():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
