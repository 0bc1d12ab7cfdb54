"""Keeps what people wrote apart from what a chat template wrote, so that only the template makes control tokens.

A text that spells a control token is replaced by a mark before rendering, and put back, as plain text, when the prompt
is tokenised. A template may write a text as JSON, and that JSON inside JSON: a mark counts how often, so that the text
comes back escaped as it would have been.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

_PRIVATE_USE: Final = (0xE000, 0x10FFFE)
"""Private use and beyond: a million code points of four bytes, twice what fits a prompt."""

Part = tuple[str, bool]
"""Text, and whether the template wrote it."""


class Marks:
    """The marks of one rendering. ``texts``: everything that people wrote; no mark occurs in it."""

    def __init__(self, texts: Iterable[str]) -> None:
        used = set().union(*texts)
        self._sign = next(c for c in map(chr, range(*_PRIVATE_USE)) if c not in used)
        self._mark = re.compile(f"{self._sign}([0-9]+):([0-9]+){self._sign}")
        self._texts: list[str] = []

    def place(self, text: str) -> str:
        """The mark that stands for ``text``."""
        self._texts.append(text)
        return f"{self._sign}0:{len(self._texts) - 1}{self._sign}"

    def deeper(self, text: str) -> str:
        """``text``, which was just written as JSON: each mark in it stands for escaped text now."""
        return self._mark.sub(lambda m: f"{self._sign}{int(m[1]) + 1}:{m[2]}{self._sign}", text)

    def split(self, rendered: str) -> list[Part]:
        """Rendered text in parts: what the template wrote, and what people did."""
        pieces = self._mark.split(rendered)
        parts: list[Part] = [(pieces[0], True)]
        for level, place, own in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
            parts += [(_escaped(self._texts[int(place)], int(level)), False), (own, True)]
        return [part for part in parts if part[0]]


def _escaped(text: str, times: int) -> str:
    for _ in range(times):
        text = json.dumps(text, ensure_ascii=False)[1:-1]
    return text
