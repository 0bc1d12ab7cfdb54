"""`mesh run`."""

from __future__ import annotations

import sys
from typing import Any

import click

from mesh_cli.ask import CHAT_PATH, TEXT_PATH, Options, ask, choose_model
from mesh_cli.common import connect, emit_json
from mesh_cli.group import Verb, json_option
from mesh_cli.sampling import sampling_options


@click.command(
    "run",
    cls=Verb,
    examples=[
        ('mesh run "Name three rivers of Europe"', "the answer streams to the terminal"),
        ("git diff | mesh run --raw - --max-tokens 80", "continue a text from a pipe"),
        ("mesh run --class confidential --region eu < letter.txt", "only on machines that may"),
    ],
)
@click.argument("prompt", required=False)
@sampling_options
@click.option("--chat/--raw", "chat", default=True, help="Ask through the model's template, or continue plain text.")
@json_option
@click.pass_context
def command(context: click.Context, /, prompt: str | None, chat: bool, as_json: bool, **chosen: Any) -> None:
    """Run PROMPT on the mesh and print the answer as it comes.

    Without PROMPT, or with -, the prompt is read from the input. Ctrl-C cancels the job everywhere. When another
    machine takes over in the middle, a dim line on stderr says so, and the answer goes on.
    """
    text = _prompt(prompt)
    options = Options(**chosen)
    with connect(context) as api:
        body = options.body(choose_model(api, options.model))
        body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
        job, outcome = ask(api, CHAT_PATH if chat else TEXT_PATH, body, quiet=as_json)
    if as_json:
        emit_json(
            {
                "job": job,
                "model": body["model"],
                "text": outcome.text,
                "finish": outcome.finish,
                "usage": outcome.usage,
                "reroutes": outcome.reroutes,
                "mesh": outcome.mesh,
            }
        )


def _prompt(argument: str | None) -> str:
    if argument not in (None, "-"):
        return str(argument)
    if argument is None and sys.stdin.isatty():
        raise click.UsageError('give a prompt, like mesh run "Hello", or pipe one in', click.get_current_context())
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    if not text.strip():
        raise click.UsageError("the input holds no prompt", click.get_current_context())
    return text
