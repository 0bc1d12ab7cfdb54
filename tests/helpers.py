"""What several tests need."""

from __future__ import annotations

from collections.abc import Callable

import trio

POLL_S = 0.02


async def until(predicate: Callable[[], object], timeout_s: float, what: str = "the condition") -> None:
    """Return as soon as ``predicate()`` is true; fail the test when that takes longer than ``timeout_s``."""
    with trio.move_on_after(timeout_s):
        while not predicate():  # noqa: ASYNC110 - the tests watch other processes, which signal no event
            await trio.sleep(POLL_S)
        return
    raise AssertionError(f"{what} did not hold within {timeout_s:g} s")
