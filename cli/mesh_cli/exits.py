"""Exit codes of `mesh`: scripts may rely on them."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """What the exit status of `mesh` means."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_RUNNING = 3
    HOME = 4
    NOT_AUTHORISED = 5
    NOT_FOUND = 6
    REFUSED = 7
    NO_WORKER = 8
    ALREADY_DONE = 9
    TIMEOUT = 10
    CANNOT = 11
    UNHEALTHY = 12
    INTERRUPTED = 130


MEANING: Final[dict[Exit, str]] = {
    Exit.OK: "done",
    Exit.UNEXPECTED: "unexpected error",
    Exit.USAGE: "the command or its input is wrong",
    Exit.NOT_RUNNING: "no daemon is running for this home",
    Exit.HOME: "not enrolled, or home or configuration unusable",
    Exit.NOT_AUTHORISED: "wrong token or passphrase, or not allowed here",
    Exit.NOT_FOUND: "no such model, job, node or file",
    Exit.REFUSED: "refused by a peer, or the invite is no good",
    Exit.NO_WORKER: "no worker could finish the job",
    Exit.ALREADY_DONE: "done before; doing it again would destroy something",
    Exit.TIMEOUT: "no answer in time",
    Exit.CANNOT: "this machine, its limits or the file do not allow it",
    Exit.UNHEALTHY: "doctor found a problem",
    Exit.INTERRUPTED: "interrupted by Ctrl-C",
}
"""One line a code, for `mesh --help`."""

EXIT_OF: Final[dict[str, Exit]] = {
    "invalid_request": Exit.USAGE,
    "context_length_exceeded": Exit.USAGE,
    "not_running": Exit.NOT_RUNNING,
    "not_enrolled": Exit.HOME,
    "home_unusable": Exit.HOME,
    "config_invalid": Exit.HOME,
    "invalid_api_key": Exit.NOT_AUTHORISED,
    "wrong_passphrase": Exit.NOT_AUTHORISED,
    "not_found": Exit.NOT_FOUND,
    "model_not_found": Exit.NOT_FOUND,
    "invite_invalid": Exit.REFUSED,
    "invite_expired": Exit.REFUSED,
    "invite_used": Exit.REFUSED,
    "not_member": Exit.REFUSED,
    "clock_wrong": Exit.REFUSED,
    "protocol_violation": Exit.REFUSED,
    "frame_too_large": Exit.REFUSED,
    "bad_signature": Exit.REFUSED,
    "task_refused": Exit.REFUSED,
    "ad_expired": Exit.REFUSED,
    "task_expired": Exit.REFUSED,
    "task_replayed": Exit.REFUSED,
    "wrong_recipient": Exit.REFUSED,
    "wrong_attempt": Exit.REFUSED,
    "mesh_no_worker": Exit.NO_WORKER,
    "mesh_overloaded": Exit.NO_WORKER,
    "engine_failed": Exit.NO_WORKER,
    "truncated": Exit.NO_WORKER,
    "already_done": Exit.ALREADY_DONE,
    "timeout": Exit.TIMEOUT,
    "unreachable": Exit.TIMEOUT,
    "port_in_use": Exit.CANNOT,
    "model_invalid": Exit.CANNOT,
    "beyond_limits": Exit.CANNOT,
}
"""Exit status by error code; a code that is not here is UNEXPECTED."""


def exit_of(code: str) -> Exit:
    """The exit status for an error code."""
    return EXIT_OF.get(code, Exit.UNEXPECTED)
