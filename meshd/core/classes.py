"""Data classes, regions: what placement must obey."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from meshd.core.errors import BadInput


class DataClass(IntEnum):
    """How sensitive a job is; a node's *clearance* is the highest class it may run."""

    PUBLIC = 0
    INTERNAL = 1
    CONFIDENTIAL = 2
    RESTRICTED = 3

    @classmethod
    def parse(cls, text: str, *, param: str = "class") -> DataClass:
        """The class named ``text``; BadInput otherwise."""
        try:
            return cls[text.upper()]
        except KeyError:
            names = ", ".join(c.name.lower() for c in cls)
            raise BadInput(f"unknown class {text[:40]!r}", param=param, hint=f"one of: {names}") from None

    def __str__(self) -> str:
        return self.name.lower()


_REGION = re.compile(r"[a-z0-9-]{1,32}(/[a-z0-9-]{1,32}){0,7}")


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """A hierarchical jurisdiction such as ``eu/de/berlin``."""

    path: str

    def __post_init__(self) -> None:
        if not _REGION.fullmatch(self.path):
            raise BadInput(
                f"not a region: {self.path[:40]!r}", param="region", hint="parts of a-z, 0-9, -, joined by /"
            )

    def admits(self, other: Region) -> bool:
        """Whether ``other`` lies in this region: ``eu`` admits ``eu/de/berlin``."""
        return other.path == self.path or other.path.startswith(self.path + "/")

    def __str__(self) -> str:
        return self.path
