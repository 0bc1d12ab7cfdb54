"""Dataclasses to wire values and back, strictly."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

import pytest

from meshd.core.errors import BadInput, ProtocolViolation
from meshd.core.ids import NodeId
from meshd.wire.typed import from_wire, to_wire
from tests.wire.samples import WORKER


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    LOW = 0


@dataclass(frozen=True, slots=True)
class Inner:
    size: int


@dataclass(frozen=True, slots=True)
class Outer:
    node: NodeId
    colour: Colour
    level: Level
    ratio: float
    flag: bool
    raw: bytes
    inner: Inner
    many: tuple[Inner, ...]
    maybe: Inner | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if self.ratio > 10:
            raise BadInput("ratio too large")


SAMPLE = Outer(WORKER.node, Colour.RED, Level.LOW, 1.5, True, b"x", Inner(1), (Inner(2), Inner(3)), None, "t")


def test_comes_back_equal() -> None:
    assert from_wire(Outer, to_wire(SAMPLE)) == SAMPLE


def test_keys_ascend() -> None:
    assert list(to_wire(SAMPLE)) == sorted(to_wire(SAMPLE))


def test_a_whole_number_given_as_float_is_written_as_float() -> None:
    whole = Outer(WORKER.node, Colour.RED, Level.LOW, 2, True, b"", Inner(1), ())
    assert type(to_wire(whole)["ratio"]) is float


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node", "12D3KooWnot-a-node"),
        ("node", 5),
        ("colour", "blue"),
        ("colour", 0),
        ("level", False),
        ("level", 7),
        ("level", []),
        ("ratio", 1),
        ("ratio", float("nan")),
        ("ratio", float("inf")),
        ("ratio", 11.0),
        ("flag", 1),
        ("raw", "x"),
        ("inner", {"size": True}),
        ("inner", {"size": 1.0}),
        ("inner", {}),
        ("inner", {"size": 1, "more": 2}),
        ("inner", {"sizes": 1}),
        ("inner", None),
        ("many", {"size": 1}),
        ("many", [None]),
        ("text", b"t"),
    ],
)
def test_a_wrong_field_is_the_senders_violation(field: str, value: object) -> None:
    with pytest.raises(ProtocolViolation):
        from_wire(Outer, {**to_wire(SAMPLE), field: value})


@pytest.mark.parametrize("value", [None, [], 1, "x", {}])
def test_something_else_altogether_is_refused(value: object) -> None:
    with pytest.raises(ProtocolViolation):
        from_wire(Outer, value)
