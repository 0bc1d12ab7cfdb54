"""Frozen dataclasses to and from plain wire values, driven by their type hints.

A dataclass becomes a map of its fields, tuples lists, enums their values. Reading is strict: an unknown or missing
key, a whole number where a fraction belongs, a bool where a number belongs are errors; what a constructor refuses
with BadInput is the sender's ProtocolViolation. Plans are made once a class: this is on the path of every task.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Hashable
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar

from meshd.core.errors import BadInput, ProtocolViolation
from meshd.core.ids import JobId, ModelDigest, NodeId, parse_digest, parse_job_id, parse_node_id

T = TypeVar("T")
Convert = Callable[[Any], Any]

_PARSERS: Final[dict[object, Callable[[str], str]]] = {
    NodeId: parse_node_id,
    JobId: parse_job_id,
    ModelDigest: parse_digest,
}


def to_wire(value: object) -> Any:
    """The plain wire value of a frozen dataclass; its maps have their keys in ascending order already."""
    return _plan(typing.cast(Hashable, type(value)))[0](value)


def from_wire(cls: type[T], value: object) -> T:
    """The ``cls`` that ``value`` (as decoded) stands for. Raises ProtocolViolation when it does not."""
    try:
        return typing.cast(T, _plan(typing.cast(Hashable, cls))[1](value))
    except BadInput as e:
        raise ProtocolViolation(f"{cls.__name__}: {e.message}") from None


@cache
def _plan(hint: Any) -> tuple[Convert, Convert]:
    """(to wire, from wire) for one type hint. TypeError for a hint that the protocol has no form for."""
    if hint in _PARSERS:
        return _same, _parsed(_PARSERS[hint])
    if isinstance(hint, typing.NewType):
        return _plan(hint.__supertype__)
    if hint is float:
        return float, _fraction
    if hint in (str, int, bytes, bool):
        return _same, _exactly(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return _list_plan(args[0])
    if origin in (types.UnionType, typing.Union) and len(args) == 2 and type(None) in args:
        return _optional_plan(next(a for a in args if a is not type(None)))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum_plan(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _class_plan(hint)
    raise TypeError(f"no wire form for {hint!r}")


def _same(value: Any) -> Any:
    return value


def _exactly(kind: type) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is not kind:  # not isinstance: True is an int to Python, not to the protocol
            raise BadInput(f"{kind.__name__} expected")
        return value

    return convert


def _parsed(parse: Callable[[str], str]) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is not str:
            raise BadInput("str expected")
        return parse(value)

    return convert


def _fraction(value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise BadInput("finite float expected")
    return value


def _list_plan(item: Any) -> tuple[Convert, Convert]:
    out, into = _plan(item)

    def convert(value: Any) -> Any:
        if type(value) is not list:
            raise BadInput("list expected")
        return tuple([into(v) for v in value])

    return (list if out is _same else lambda value: [out(v) for v in value]), convert


def _optional_plan(item: Any) -> tuple[Convert, Convert]:
    out, into = _plan(item)
    return (lambda v: None if v is None else out(v)), (lambda v: None if v is None else into(v))


def _enum_plan(cls: type[Enum]) -> tuple[Convert, Convert]:
    by_value = {member.value: member for member in cls}
    kind = type(next(iter(by_value)))

    def convert(value: Any) -> Any:
        if type(value) is not kind or value not in by_value:
            raise BadInput(f"not a {cls.__name__}")
        return by_value[value]

    return (lambda member: member.value), convert


def _class_plan(cls: type[Any]) -> tuple[Convert, Convert]:
    hints = typing.get_type_hints(cls)
    fields = [(f.name, *_plan(hints[f.name])) for f in sorted(dataclasses.fields(cls), key=lambda f: f.name)]
    count, name_of = len(fields), cls.__name__

    def out(value: Any) -> Any:
        return {name: put(getattr(value, name)) for name, put, _ in fields}

    def into(value: Any) -> Any:
        if type(value) is not dict or len(value) != count:
            raise BadInput(f"a map of {count} fields expected for {name_of}")
        try:
            return cls(**{name: take(value[name]) for name, _, take in fields})
        except KeyError as e:
            raise BadInput(f"{name_of} lacks {e.args[0]}") from None

    return out, into
