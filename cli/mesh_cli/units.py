"""Sizes, percents and durations as people write them."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from meshd.core.classes import DataClass, Region
from meshd.core.errors import BadInput

_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z%]*)")
_SIZES: Final = {
    "": 1,
    "b": 1,
    **{u: 1000**n for n, u in enumerate(("kb", "mb", "gb", "tb"), 1)},
    **{u: 1024**n for n, u in enumerate(("kib", "mib", "gib", "tib"), 1)},
    **{u: 1024**n for n, u in enumerate(("k", "m", "g", "t"), 1)},
}
_SECONDS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def _split(text: str) -> tuple[float, str] | None:
    match = _NUMBER.fullmatch(text.strip())
    return (float(match[1]), match[2].lower()) if match else None


def size_bytes(text: str) -> int:
    """Bytes of ``4GiB``, ``512MB``, ``1.5G`` (K, M, G, T alone are powers of 1024); ValueError otherwise."""
    parts = _split(text)
    if parts is None or parts[1] not in _SIZES or parts[0] <= 0:
        raise ValueError(f"{text!r} is no size; write it like 4GiB or 512MB")
    return int(parts[0] * _SIZES[parts[1]])


def fraction(text: str) -> float:
    """The part of the machine that ``50%`` or ``0.5`` means, above 0 and at most 1; ValueError otherwise."""
    parts = _split(text)
    value = parts[0] / (100 if parts[1] == "%" else 1) if parts and parts[1] in ("", "%") else 0.0
    if not 0.01 <= value <= 1:
        raise ValueError(f"{text!r} is no part between 1% and 100%; write it like 50% or 0.5")
    return value


def duration_s(text: str) -> float:
    """Seconds of ``30s``, ``5m``, ``24h``, ``7d`` (a bare number is seconds); ValueError otherwise."""
    parts = _split(text)
    if parts is None or parts[1] not in _SECONDS:
        raise ValueError(f"{text!r} is no duration; write it like 30s, 5m, 24h or 7d")
    return parts[0] * _SECONDS[parts[1]]


def seed_number(text: str) -> int:
    """A whole number that a seed can be; ValueError otherwise."""
    if not (text.isascii() and text.isdigit() and int(text[:20]) < 2**63):
        raise ValueError(f"{text[:30]!r} is no whole number from 0 to 2^63 - 1")
    return int(text)


class _Quantity(click.ParamType[Any]):
    """A click type around one of the parsers above; click's error names the option."""

    def __init__(self, name: str, parse: Any) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        except BadInput as error:
            self.fail(f"{error.message} ({error.hint})" if error.hint else error.message, param, ctx)


SIZE: Final = _Quantity("size", size_bytes)
FRACTION: Final = _Quantity("percent", fraction)
SEED: Final = _Quantity("number", seed_number)
DURATION: Final = _Quantity("duration", duration_s)
REGION: Final = _Quantity("region", lambda text: str(Region(text)))
CLASSES: Final = " < ".join(str(c) for c in DataClass)
CLASS: Final = click.Choice([str(c) for c in DataClass], case_sensitive=False)
