"""One value, one encoding; anything else is refused, within bounds."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.core.errors import BadInput, FrameTooLarge, ProtocolViolation
from meshd.wire.codec import MAX_DEPTH, MAX_ITEMS, MAX_TOTAL_ITEMS, decode, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.binary(max_size=40)
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=5) | st.dictionaries(KEYS, v, max_size=5), max_leaves=20)


@given(VALUES)
def test_every_value_comes_back(value: object) -> None:
    try:
        data = encode(value)
    except BadInput:  # nested beyond MAX_DEPTH
        return
    assert decode(data, len(data)) == value


@given(st.dictionaries(KEYS, st.integers(0, 9), min_size=2, max_size=8))
def test_the_order_of_keys_does_not_matter(value: dict[str, int]) -> None:
    turned = dict(reversed(list(value.items())))
    assert encode(turned) == encode(value)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_canonical(data: bytes) -> None:
    try:
        value = decode(data, 300)
    except ProtocolViolation:
        return
    assert encode(value) == data


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("nothing", b""),
        ("trailing byte", encode(1) + b"\0"),
        ("missing byte", encode("hello")[:-1]),
        ("long form of a small number", b"\xcd\x00\x01"),
        ("long form of a short text", b"\xd9\x01a"),
        ("float32", msgpack.packb(1.5, use_single_float=True)),
        ("keys out of order", b"\x82\xa1b\x01\xa1a\x02"),
        ("doubled key", b"\x82\xa1a\x01\xa1a\x02"),
        ("key that is no text", b"\x81\x01\x01"),
        ("extension type", msgpack.packb(msgpack.ExtType(5, b"x"))),
        ("timestamp", msgpack.packb(msgpack.Timestamp(1, 0))),
        ("text that is not UTF-8", b"\xa1\xff"),
        ("too deep", b"\x91" * (MAX_DEPTH + 1) + b"\x01"),
        ("far too deep", b"\x91" * 100_000),
        ("too many items", msgpack.packb([0] * (MAX_ITEMS + 1))),
        ("a length that is a lie", b"\xdd\xff\xff\xff\xff"),
        ("a reserved byte", b"\xc1"),
    ],
)
def test_what_encode_would_not_write_is_refused(why: str, data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode(data, 1_000_000)


def test_size_is_checked_before_anything_is_read() -> None:
    with pytest.raises(FrameTooLarge):
        decode(b"\xc1" * 11, 10)


def test_deepest_allowed_nesting_passes() -> None:
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert decode(encode(value), 100) == value
    with pytest.raises(BadInput):
        encode([value])


@pytest.mark.parametrize("value", ["\ud800", 2**64, object(), {1: 2}])
def test_what_msgpack_cannot_say_is_the_callers_fault(value: object) -> None:
    with pytest.raises(BadInput):
        encode(value)


def test_hostile_input_costs_little_time() -> None:
    """Empty lists without end: a byte each here, 64 bytes and a visit each once read. What is built is measured, not
    the time that building takes, which is the machine's: all 409,500 of these lists are 26 MB."""
    inner = b"\xdc\x0f\xff" + b"\x90" * 4095
    wide = b"\xdc\x00\x64" + inner * 100
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolViolation):
            decode(wide, len(wide))
        _, built_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert built_bytes < 2 * 64 * MAX_TOTAL_ITEMS


def test_entries_are_bounded_in_all_not_only_in_each_list() -> None:
    fits = [[0] * 4095] * 7 + [[0] * (MAX_TOTAL_ITEMS - 7 * 4095 - 8)]
    assert decode(encode(fits), 1 << 20) == fits
    with pytest.raises(ProtocolViolation):
        decode(encode([*fits, 0]), 1 << 20)
    maps = [{f"{i:04}": i for i in range(4000)}] * 9
    with pytest.raises(ProtocolViolation):
        decode(encode(maps), 1 << 20)
