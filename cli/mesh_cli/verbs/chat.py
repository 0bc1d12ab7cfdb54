"""`mesh chat`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from mesh_cli.ask import CHAT_PATH, Options, ask, choose_model
from mesh_cli.common import connect, say
from mesh_cli.failure import Failure, complain, paint
from mesh_cli.group import Verb
from mesh_cli.sampling import sampling_options

if TYPE_CHECKING:
    from mesh_cli.client import Api

HELP = "/new forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer"
FATAL = frozenset({"not_running", "invalid_api_key"})


@click.command(
    "chat",
    cls=Verb,
    examples=[("mesh chat", "with the first model"), ("mesh chat -m gemma3-270m --temperature 0.7", "choose")],
)
@sampling_options
@click.option("--system", metavar="TEXT", help="Instruction that stands before the conversation.")
@click.pass_context
def command(context: click.Context, /, system: str | None, **chosen: Any) -> None:
    """Talk with a model. The conversation stays on this machine and goes along with each question."""
    options = Options(**chosen)
    with connect(context) as api:
        model = choose_model(api, options.model)
        if sys.stdin.isatty():
            import readline  # noqa: F401 - line editing for input()

            say(paint(f"{model}: {HELP}", dim=True))
        _converse(api, options.body(model), system)


def _converse(api: Api, body: dict[str, Any], system: str | None) -> None:
    opening: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    history = list(opening)
    while (line := _read()) is not None:
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            history = list(opening)
            say(paint("a new conversation", dim=True))
        elif line.startswith("/"):
            say(paint(HELP, dim=True))
        elif line:
            _turn(api, body, history, line)


def _read() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        if sys.stdin.isatty():
            click.echo()
        return None


def _turn(api: Api, body: dict[str, Any], history: list[dict[str, str]], line: str) -> None:
    """One question and its answer; both enter ``history`` only when the answer is complete."""
    question = {"role": "user", "content": line}
    try:
        _, outcome = ask(api, CHAT_PATH, {**body, "messages": [*history, question]})
    except KeyboardInterrupt:
        say(paint("stopped", dim=True))
        return
    except Failure as failure:
        if failure.code in FATAL or not sys.stdin.isatty():
            raise
        complain(failure.message, failure.hint)
        return
    history += [question, {"role": "assistant", "content": outcome.text}]
