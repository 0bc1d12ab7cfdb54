"""The log holds words of other machines, and lines that strangers cause."""

from __future__ import annotations

import io
import logging

import pytest

from meshd.app.logs import BURST, FORMAT, Calm, OneLine


def logger() -> tuple[logging.Logger, io.StringIO]:
    """A logger of its own that writes as the daemon does, and what it wrote."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(OneLine(FORMAT))
    handler.addFilter(Calm())
    log = logging.Logger("test", logging.DEBUG)
    log.addHandler(handler)
    return log, written


@pytest.mark.parametrize(
    "evil", ["\x1b]0;owned\x07", "x\n2026-01-01 ERROR meshd: forged", "\x9b2J", "\u202e", "\ud800"]
)
def test_words_of_other_machines_stay_on_their_line_and_move_no_cursor(evil: str) -> None:
    log, written = logger()
    log.warning("refused %s", evil)
    (line,) = written.getvalue().splitlines()
    assert line.isprintable() and "refused" in line


def test_a_traceback_keeps_its_lines() -> None:
    log, written = logger()
    try:
        raise ValueError("here")
    except ValueError:
        log.exception("failed")
    assert len(written.getvalue().splitlines()) > 2


def test_a_flood_of_one_line_is_counted_instead_of_written() -> None:
    log, written = logger()
    records = [log.makeRecord("test", logging.WARNING, "f.py", 7, "knock %d", (n,), None) for n in range(1000)]
    for record in records:
        record.created = 100.0
        log.handle(record)
    other = log.makeRecord("test", logging.WARNING, "f.py", 8, "something else", (), None)
    log.handle(other)
    assert len(written.getvalue().splitlines()) == BURST + 1
    late = log.makeRecord("test", logging.WARNING, "f.py", 7, "knock %d", (1000,), None)
    late.created = 101.5
    log.handle(late)
    assert written.getvalue().splitlines()[-1].endswith(f"knock 1000 (and {1000 - BURST} more like it)")


@pytest.mark.parametrize("level", [logging.DEBUG, logging.ERROR])
def test_debugging_and_errors_are_never_kept_back(level: int) -> None:
    log, written = logger()
    for _ in range(3 * BURST):
        log.handle(log.makeRecord("test", level, "f.py", 7, "again", (), None))
    assert len(written.getvalue().splitlines()) == 3 * BURST
