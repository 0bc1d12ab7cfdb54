"""Entry point of `mesh`: the table of verbs."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Final

import click

from mesh_cli.exits import Exit
from mesh_cli.failure import complain
from mesh_cli.group import Entry, LazyGroup

_START, _SHARE, _LOOK, _WORK = "Start", "This machine", "Look", "Work"

ENTRIES: Final = (
    Entry("org", "Create the organisation, or show it.", _START),
    Entry("invite", "Make an invite for another machine.", _START),
    Entry("join", "Join an organisation with an invite.", _START),
    Entry("up", "Start the daemon.", _START),
    Entry("down", "Stop the daemon.", _START),
    Entry("share", "Let the mesh use this machine, within limits.", _SHARE),
    Entry("unshare", "Stop letting the mesh use this machine.", _SHARE),
    Entry("pause", "Take no work from others for a while.", _SHARE),
    Entry("resume", "End a pause or a drain.", _SHARE),
    Entry("drain", "Finish or hand over what runs, take nothing new.", _SHARE),
    Entry("status", "This node, its peers, jobs and models on one screen.", _LOOK),
    Entry("nodes", "The machines of the mesh.", _LOOK),
    Entry("jobs", "Running and recent jobs.", _LOOK),
    Entry("doctor", "Find out what is wrong, and what to do.", _LOOK),
    Entry("run", "Run a prompt and print the answer as it comes.", _WORK),
    Entry("chat", "Talk with a model.", _WORK),
    Entry("model", "Add, list and remove models.", _WORK),
    Entry("upstream", "Stand in front of other servers, as one node.", _WORK),
    Entry("token", "Show or replace the token of the local API.", _WORK),
)


@click.command(
    cls=LazyGroup,
    entries=ENTRIES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.version_option(package_name="meshd", message="mesh %(version)s")
def cli() -> None:
    """mesh: a private AI compute network on the machines you already own."""


def main() -> None:
    """Run `mesh`; never returns, never shows a traceback unless MESH_DEBUG is set."""
    if not os.environ.get("MESH_DEBUG"):
        sys.excepthook = _unexpected
    cli.main()


def _unexpected(kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        os._exit(Exit.INTERRUPTED)
    complain(f"unexpected {kind.__name__}: {error}", "run it again with MESH_DEBUG=1 to see where; please report it")


if __name__ == "__main__":
    main()
