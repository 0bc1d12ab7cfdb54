"""The daemon's log: one line a record, whatever other machines put into it, and no flood of the same line.

Words of other machines reach the log (names, reasons), and a stranger can cause lines by knocking. So control
characters are written as escapes, and a line of the code that logs too often is counted instead of written.
"""

from __future__ import annotations

import logging
from typing import Final, TextIO

BURST: Final = 30
REFILL_PER_S: Final = 1.0
"""Of one line of the code: thirty at once, then one a second: 10 MB a day at most, however hard somebody knocks."""

FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class OneLine(logging.Formatter):
    """Writes a record's message without control characters. A traceback follows it on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """The line of the record."""
        line = super().formatMessage(record)
        return line if line.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in line)


class Calm(logging.Filter):
    """Lets each line of the code through at a bounded rate, and says how many it kept back. Not for debugging:
    who asks for that wants everything; nor for errors, which strangers cannot cause."""

    def __init__(self) -> None:
        super().__init__()
        self._levels: dict[tuple[str, int], tuple[float, float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the record."""
        if not logging.INFO <= record.levelno < logging.ERROR:
            return True
        where = (record.pathname, record.lineno)
        level, since_s, kept_back = self._levels.get(where, (float(BURST), record.created, 0))
        level = min(BURST, level + max(0.0, record.created - since_s) * REFILL_PER_S)
        if level < 1:
            self._levels[where] = (level, record.created, kept_back + 1)
            return False
        self._levels[where] = (level - 1, record.created, 0)
        if kept_back:
            record.msg, record.args = f"{record.getMessage()} (and {kept_back} more like it)", None
        return True


def begin(stream: TextIO, level: str) -> None:
    """Log to ``stream`` from ``level`` on, from everywhere in this process."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLine(FORMAT))
    handler.addFilter(Calm())
    logging.basicConfig(handlers=[handler], level=level.upper())
    for chatty in ("httpx", "httpcore"):  # a line for every request, and at debug what went over the wire
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
