"""A process that steps back behind the owner's programs: for the processor, for the disk, and when memory runs out.

Called in the engine's own process before llama.cpp starts its threads, which inherit all of it. What a system does
not have, or does not allow, is left out: none of it is a promise that anything depends on.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

NORMAL, LOW, IDLE = "normal", "low", "idle"

OOM_SCORE: Final = 800
"""Of 1,000: when the system runs out of memory it ends the process with the highest score. An engine can be started
again; the owner's unsaved work cannot. Not all of it: what asked to go first still does."""

_OOM_FILE: Final = Path("/proc/self/oom_score_adj")
_LOWEST_BEST_EFFORT: Final = 7
_LOWEST_NICE: Final = 19


def step_back(priority: str, nice: int) -> None:
    """Give this thread, and those it starts, the owner's ``priority``: ``normal`` (as any program), ``low`` (``nice``
    steps behind, last among the readers of the disk) or ``idle`` (only what nobody else wants). Never raises."""
    expect_to_be_killed()
    if priority == NORMAL:
        return
    with suppress(OSError):
        if priority == IDLE and hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.nice(_LOWEST_NICE if priority == IDLE else nice)
    _read_last(priority)


def _read_last(priority: str) -> None:
    process = psutil.Process()
    if not hasattr(process, "ionice") or not hasattr(psutil, "IOPRIO_CLASS_IDLE"):
        return
    with suppress(OSError, psutil.Error):
        if priority == IDLE:
            process.ionice(psutil.IOPRIO_CLASS_IDLE)
        else:
            process.ionice(psutil.IOPRIO_CLASS_BE, _LOWEST_BEST_EFFORT)


def expect_to_be_killed() -> None:
    """Ask the system to end this process before others when memory runs out. Never asks for less than was asked for
    already. Never raises."""
    with suppress(OSError, ValueError):
        if int(_OOM_FILE.read_text("ascii")) < OOM_SCORE:
            _OOM_FILE.write_text(str(OOM_SCORE), "ascii")
