"""The top door: what a part of the daemon raises unexpectedly ends that part, not the daemon.

Parts without which nothing works (worker, submitter, neighbours, the API) are not run through it: their fault ends the
daemon, and saying so beats limping. The others are started again, a little later each time, so that a fault that
stays costs little.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable

import trio

log = logging.getLogger("meshd.app")

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0
STEADY_S = 60.0
"""A part that ran for so long had recovered: its next fault counts as its first."""


async def keep_running(name: str, part: Callable[[], Awaitable[None]]) -> None:
    """Run ``part`` until cancelled, again after every fault; a part that returns is done."""
    pause_s = FIRST_PAUSE_S
    while True:
        began_s = trio.current_time()
        try:
            await part()
            return
        except Exception as error:  # noqa: BLE001 - the top door: one part's fault must not end the daemon
            what = "".join(traceback.format_exception(error))
            log.error("%s failed; starting it again in %.1f s\n%s", name, pause_s, what)
        if trio.current_time() - began_s > STEADY_S:
            pause_s = FIRST_PAUSE_S
        await trio.sleep(pause_s)
        pause_s = min(MAX_PAUSE_S, pause_s * 2)
