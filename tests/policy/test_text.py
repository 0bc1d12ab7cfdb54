"""The text that an app sees does not depend on how bytes were cut into tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.policy.text import TextAssembler

letters = st.text(alphabet="ab€c", max_size=5)
stop_lists = st.lists(st.text(alphabet="ab€c", min_size=1, max_size=4), max_size=3)
junk = st.lists(st.one_of(letters.map(str.encode), st.binary(max_size=3), st.sampled_from([b"\xe2", b"\x82\xac"])))


def reference(stops: list[str], data: bytes) -> tuple[str, bool]:
    """The whole text, cut before the stop string that is complete first (the longest, when several are)."""
    text = data.decode("utf-8", "replace")
    for end in range(1, len(text) + 1):
        complete = [s for s in stops if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(stop_lists, junk)
def test_equals_whole_string_reference(stops: list[str], pieces: list[bytes]) -> None:
    assembler = TextAssembler(stops)
    shown = "".join(assembler.feed(p) for p in pieces) + assembler.flush()
    assert (shown, assembler.stopped) == reference(stops, b"".join(pieces))


@given(stop_lists, junk, st.data())
def test_rebuilt_goes_on_like_the_original(stops: list[str], pieces: list[bytes], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(pieces)))
    original = TextAssembler(stops)
    for piece in pieces[:cut]:
        original.feed(piece)
    rebuilt = TextAssembler.rebuilt(stops, pieces[:cut])
    for piece in pieces[cut:]:
        assert rebuilt.feed(piece) == original.feed(piece)
    assert rebuilt.flush() == original.flush()


@given(stop_lists, junk)
def test_holds_back_only_what_may_still_change(stops: list[str], pieces: list[bytes]) -> None:
    """Shown text is as long as possible: the rest is a beginning of a stop string."""
    assembler = TextAssembler(stops)
    shown = ""
    for piece in pieces:
        shown += assembler.feed(piece)
    if not assembler.stopped:
        held = assembler.flush().rstrip("�")
        assert held == "" or any(s.startswith(held) for s in stops)


def test_character_over_three_tokens() -> None:
    assembler = TextAssembler()
    assert [assembler.feed(bytes([b])) for b in "€".encode()] == ["", "", "€"]


def test_incomplete_character_at_the_end_is_marked() -> None:
    assembler = TextAssembler()
    assert assembler.feed(b"a\xe2\x82") == "a"
    assert assembler.flush() == "�"


def test_invalid_byte_is_marked_once_certain() -> None:
    assembler = TextAssembler()
    assert assembler.feed(b"\xe2") == ""
    assert assembler.feed(b"a") == "�a"


def test_stop_over_token_boundary_is_not_shown() -> None:
    assembler = TextAssembler(["END"])
    assert [assembler.feed(p) for p in (b"one E", b"N", b"D two")] == ["one ", "", ""]
    assert assembler.stopped and assembler.stop == "END"
    assert assembler.feed(b"more") == "" and assembler.flush() == ""


def test_held_text_is_shown_when_it_cannot_match() -> None:
    assembler = TextAssembler(["END"])
    assert [assembler.feed(p) for p in (b"E", b"N", b"X")] == ["", "", "ENX"]


def test_held_text_is_shown_at_the_end() -> None:
    assembler = TextAssembler(["END"])
    assert assembler.feed(b"EN") == ""
    assert assembler.flush() == "EN" and not assembler.stopped


def test_stop_with_itself_inside() -> None:
    """A failed match may hold the beginning of the next one."""
    assembler = TextAssembler(["aab"])
    assert assembler.feed(b"aaab") == "a" and assembler.stopped


@pytest.mark.parametrize("stops", [[], [""]])
def test_no_stops_shows_everything(stops: list[str]) -> None:
    assembler = TextAssembler(stops)
    assert assembler.feed(b"abc") == "abc" and not assembler.stopped
