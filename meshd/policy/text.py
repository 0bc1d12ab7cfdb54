"""From token pieces to text that may be shown: UTF-8 across tokens, stop strings held back while they may match."""

from __future__ import annotations

import codecs
from collections.abc import Iterable


class _Stop:
    """Follows one stop string through the text, character by character (Knuth, Morris and Pratt's automaton)."""

    __slots__ = ("_fallback", "matched", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.matched = 0
        self._fallback = _fallbacks(pattern)

    def advance(self, char: str) -> bool:
        """Take one character; whether the stop string is complete with it."""
        while self.matched and self.pattern[self.matched] != char:
            self.matched = self._fallback[self.matched - 1]
        if self.pattern[self.matched] == char:
            self.matched += 1
        return self.matched == len(self.pattern)


def _fallbacks(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its end."""
    table = [0] * len(pattern)
    length = 0
    for at in range(1, len(pattern)):
        while length and pattern[at] != pattern[length]:
            length = table[length - 1]
        length += pattern[at] == pattern[length]
        table[at] = length
    return table


class TextAssembler:
    """Turns token pieces into the text that may be shown now.

    A character spread over several tokens is held back until it is whole; bytes that cannot become a character
    turn into U+FFFD as soon as that is certain. Text that may still become a stop string is held back; the stop
    string itself is never shown, and nothing after it. What is shown in total depends on the bytes only, not on how
    they were cut into pieces: the stop that is complete first wins, the longest of them when several are.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = [_Stop(s) for s in stops if s]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._stop: str | None = None

    @classmethod
    def rebuilt(cls, stops: Iterable[str], pieces: Iterable[bytes]) -> TextAssembler:
        """The assembler as it stands after ``pieces``, whose text was shown before."""
        assembler = cls(stops)
        for piece in pieces:
            assembler.feed(piece)
        return assembler

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete: nothing more will be shown."""
        return self._stop is not None

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text; None while none did."""
        return self._stop

    def feed(self, piece: bytes) -> str:
        """Take the next token's bytes; the text that may be shown now, often empty."""
        return "" if self.stopped else self._take(self._decoder.decode(piece))

    def flush(self) -> str:
        """No more pieces will come: everything that was held back and is not a stop string."""
        if self.stopped:
            return ""
        shown = self._take(self._decoder.decode(b"", True))
        if not self.stopped:
            shown, self._held = shown + self._held, ""
        return shown

    def _take(self, text: str) -> str:
        for at, char in enumerate(text):
            complete = [s for s in self._stops if s.advance(char)]
            if complete:
                longest = max(complete, key=lambda s: len(s.pattern))
                self._stop = longest.pattern
                whole, self._held = self._held + text[: at + 1], ""
                return whole[: -len(longest.pattern)]
        whole = self._held + text
        keep = max((s.matched for s in self._stops), default=0)
        shown, self._held = whole[: len(whole) - keep], whole[len(whole) - keep :]
        return shown
