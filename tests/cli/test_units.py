"""Sizes, percents, durations: what is understood, and that anything else is refused."""

from __future__ import annotations

import pytest
from mesh_cli.units import duration_s, fraction, size_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GiB", 4 * 2**30), ("512MB", 512_000_000), ("1.5G", 3 * 2**29), ("4 gib", 4 * 2**30), ("1000", 1000)],
)
def test_sizes(text: str, expected: int) -> None:
    assert size_bytes(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("50%", 0.5), ("0.5", 0.5), ("100%", 1.0), ("1", 1.0), ("1%", 0.01)])
def test_fractions(text: str, expected: float) -> None:
    assert fraction(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("30s", 30), ("5m", 300), ("24h", 86400), ("7d", 604800), ("1.5h", 5400), ("90", 90)]
)
def test_durations(text: str, expected: float) -> None:
    assert duration_s(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "4GB4", "-4GiB", "4 parsecs", "nan", "1e9", "0GiB", "50%"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="like 4GiB"):
        size_bytes(text)


@pytest.mark.parametrize("text", ["0%", "150%", "50", "half", "-1%", "", "2x"])
def test_bad_fractions(text: str) -> None:
    with pytest.raises(ValueError, match="like 50%"):
        fraction(text)


@pytest.mark.parametrize("text", ["", "h", "5 years", "-5m", "inf"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="like 30s"):
        duration_s(text)
