"""Click groups that load one file a verb, verbs that show examples, and the last door for every error."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from mesh_cli.exits import MEANING, Exit
from mesh_cli.failure import Failure, complain, paint


@dataclass(frozen=True, slots=True)
class Entry:
    """A verb that is loaded when it is typed: ``module`` holds it as ``command``."""

    name: str
    summary: str
    section: str

    @property
    def module(self) -> str:
        return f"mesh_cli.verbs.{self.name}"


@dataclass(slots=True)
class State:
    """What the options before the verb said."""

    home: str | None = None


def _set_home(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(State).home = value


def _home_option() -> click.Option:
    return click.Option(
        ["--home"],
        metavar="DIR",
        expose_value=False,
        is_eager=True,
        callback=_set_home,
        help="The node's directory (default: $MESH_HOME, then ~/.meshd).",
    )


class Verb(click.Command):
    """A command that takes --home as well and shows ``examples``: pairs of a command line and what it does."""

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_home_option())
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, after the options."""
        if not self.examples:
            return
        with formatter.section("Examples"):
            for line, meaning in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
                formatter.write(f"{'':{formatter.current_indent}}    {paint(meaning, dim=True)}\n")


class Group(click.Group):
    """A group of verbs that says "did you mean"; without a verb it shows its help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("no_args_is_help", True)
        super().__init__(*args, **kwargs)
        self.params.append(_home_option())

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb named by the first argument; a usage error that names near ones otherwise."""
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not name.startswith("-"):
            raise click.UsageError(f"no command {name!r}{_near(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


def _near(name: str, names: Sequence[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name.lower(), names, n=3, cutoff=0.55)
    return f"; did you mean {' or '.join(near)}?" if near else ""


class LazyGroup(Group):
    """The root: verbs come from a table, so that --help imports none of them."""

    def __init__(self, *args: Any, entries: Sequence[Entry] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entries = {e.name: e for e in entries}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """``mesh help run`` means ``mesh run --help``."""
        return super().parse_args(ctx, [*args[1:], "--help"] if args[:1] == ["help"] else args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        command = importlib.import_module(entry.module).command
        assert isinstance(command, click.Command)  # noqa: S101 - a verb file without its verb is our own mistake
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Sections of verbs, each with its line, straight from the table."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for entry in self.entries.values():
            sections.setdefault(entry.section, []).append((entry.name, entry.summary))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows, col_max=12)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), meaning) for code, meaning in MEANING.items()], col_max=12)
        formatter.write_paragraph()
        formatter.write_text("Every verb has its own help with examples: mesh run --help")

    def invoke(self, ctx: click.Context) -> Any:
        """The verb; a reader that went away ends it quietly."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return _reader_gone()

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the verb and exit: every known failure becomes one line, a hint and its exit code."""
        try:
            status = super().main(*args, **{**extra, "prog_name": "mesh", "standalone_mode": False})
        except Failure as failure:
            complain(failure.message, failure.hint)
            status = failure.exit
        except click.exceptions.NoArgsIsHelpError as usage:
            click.echo(usage.format_message())
            status = Exit.USAGE
        except click.ClickException as usage:
            complain(usage.format_message(), _usage_hint(usage))
            status = Exit.USAGE
        except click.Abort:
            status = Exit.INTERRUPTED
        sys.exit(int(status) if isinstance(status, int) else Exit.OK)


def _usage_hint(problem: click.ClickException) -> str:
    context = problem.ctx if isinstance(problem, click.UsageError) else None
    return f"see {context.command_path} --help" if context else ""


def _reader_gone() -> Exit:
    """`mesh status | head` closed the pipe: that is no error, and there is nobody left to tell."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Exit.OK


def state_of(context: click.Context) -> State:
    """The options given before or after the verb."""
    return context.ensure_object(State)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
