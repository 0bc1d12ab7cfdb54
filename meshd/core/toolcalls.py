"""Reads the calls of tools out of a model's text while it is being written.

The text may come in any pieces: the events, taken together, are the same. What may still become a call is held back;
what turns out to be none is said as plain text, so nothing is lost. The one thing that cannot be taken back is a call
whose name was told and whose arguments then break off or are no JSON: it is told as broken, and said as text as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from meshd.core import limits
from meshd.core.toolsyntax import ToolSyntax

_SPACE: Final = " \t\r\n"

_MAX_DEPTH: Final = 64
"""Nesting of arguments. Nobody's function needs more, and a parser's stack is finite."""

_MAX_WORD: Final = 400
"""Characters of a key or a name as JSON writes it: 64 characters, each escaped, and quotes."""


@dataclass(frozen=True, slots=True)
class Said:
    """Plain text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The call number ``index`` (from 0) is of the tool ``name``."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of the call's arguments: JSON exactly as the model wrote it."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call is whole, and its arguments are a JSON object."""

    index: int


@dataclass(frozen=True, slots=True)
class CallBroken:
    """What was told of this call is no call; its text comes next, as `Said`."""

    index: int


CallEvent = Said | CallBegun | CallArguments | CallEnded | CallBroken


class _Malformed(Exception):
    """The next character cannot belong to a call."""


def _no_constant(name: str) -> object:
    raise ValueError(name)


def _read_json(text: str) -> object:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _Malformed from None


class _Scanner:
    """Follows one call's JSON object, character by character: a name, arguments, and perhaps a type and an id, in any
    order. ``name`` and ``arguments`` fill as they are read; ``whole`` once the object is closed."""

    def __init__(self, arguments_key: str, names: frozenset[str]) -> None:
        self.name: str | None = None
        self.arguments: list[str] = []
        self.whole = False
        self._names = names
        self._left = {"name", arguments_key, "type", "id"}
        self._arguments_key = arguments_key
        self._key = ""
        self._word: list[str] = []
        self._depth = 0
        self._quoted = self._escaped = False
        self._state: Callable[[str], None] = self._begin

    def take(self, char: str) -> None:
        """Take the next character; raises _Malformed when no call can have it there."""
        if self._quoted or char not in _SPACE or self._depth:
            self._state(char)

    def _begin(self, char: str) -> None:
        self._expect(char, "{", self._before_key)

    def _expect(self, char: str, wanted: str, then: Callable[[str], None]) -> None:
        if char != wanted:
            raise _Malformed
        self._state = then

    def _before_key(self, char: str) -> None:
        self._expect(char, '"', self._in_key)
        self._word, self._quoted = [char], True

    def _in_key(self, char: str) -> None:
        if self._ends_word(char):
            key = self._word_read()
            if key not in self._left:
                raise _Malformed
            self._left.remove(key)
            self._key, self._state = key, self._before_value_mark

    def _before_value_mark(self, char: str) -> None:
        self._expect(char, ":", self._before_value)

    def _before_value(self, char: str) -> None:
        if self._key == self._arguments_key:
            self._expect(char, "{", self._in_arguments)
            self.arguments.append(char)
            self._depth = 1
        else:
            self._expect(char, '"', self._in_value)
            self._word, self._quoted = [char], True

    def _in_value(self, char: str) -> None:
        if self._ends_word(char):
            value = self._word_read()
            if self._key == "name":
                if value not in self._names:
                    raise _Malformed
                self.name = value
            self._state = self._after_value

    def _in_arguments(self, char: str) -> None:
        self.arguments.append(char)
        if self._quoted:
            self._ends_string(char)
        elif char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise _Malformed
        elif char in "]}":
            self._depth -= 1
            if not self._depth:
                _read_json("".join(self.arguments))
                self._state = self._after_value

    def _after_value(self, char: str) -> None:
        if char == ",":
            self._state = self._before_key
        elif char == "}" and self.name is not None and self.arguments:
            self.whole = True
        else:
            raise _Malformed

    def _ends_word(self, char: str) -> bool:
        self._word.append(char)
        if len(self._word) > _MAX_WORD:
            raise _Malformed
        return self._ends_string(char)

    def _ends_string(self, char: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._quoted = False
            return True
        return False

    def _word_read(self) -> str:
        return str(_read_json("".join(self._word)))


class CallReader:
    """Turns the text of one answer into events. ``names``: the tools that were offered; a call of any other is text.

    Space alone before, between and behind calls is dropped. ``whole`` counts the whole calls; ``cut`` says, once
    `finish` was called, that the answer ended inside a call whose name was told."""

    def __init__(self, syntax: ToolSyntax, names: Iterable[str]) -> None:
        self.whole = 0
        self.cut = False
        self._syntax = syntax
        self._names = frozenset(names)
        self._events: list[CallEvent] = []
        self._buffer = ""
        self._gap: str | None = ""
        self._raw: list[str] = []
        self._begun = 0
        self._told_arguments = 0
        self._telling = False
        self._scanner = self._new_scanner()
        self._state: Callable[[], bool] = self._text if syntax.opener else self._start

    def feed(self, text: str) -> list[CallEvent]:
        """Take the next text; what is certain with it."""
        self._buffer += text
        while self._buffer and self._state():
            pass
        return self._taken()

    def finish(self, *, cut: bool) -> list[CallEvent]:
        """No more text will come; ``cut``: because a limit was reached, and not because the model was done."""
        if self._state in (self._call, self._list):
            if cut and self._telling:
                self.cut = True
            else:
                self._break()
        elif self._state != self._after or (self._buffer.strip(_SPACE) and not cut):
            self._say(self._buffer)
        if self._gap and not self._begun:
            self._events.append(Said(self._gap))
        self._buffer, self._gap, self._state = "", None, self._plain
        return self._taken()

    def _taken(self) -> list[CallEvent]:
        events, self._events = self._events, []
        return events

    def _new_scanner(self) -> _Scanner:
        return _Scanner(self._syntax.arguments_key, self._names)

    def _say(self, text: str) -> None:
        if self._gap is not None:
            text = self._gap + text
            if not text.strip(_SPACE):
                self._gap = text
                return
            self._gap = None
        if text:
            self._events.append(Said(text))

    # -- states: each takes what it can of the buffer; true when another look may take more

    def _plain(self) -> bool:
        self._say(self._buffer)
        self._buffer = ""
        return False

    def _start(self) -> bool:
        """Nothing but space came: the answer is one call, or none at all."""
        said = self._buffer.lstrip(_SPACE)
        if not said:
            return False
        self._state = self._call if said[0] == "{" else self._plain
        if self._state == self._call:
            self._say(self._buffer[: -len(said)])
            self._buffer = said
        return True

    def _text(self) -> bool:
        if self._begun >= limits.MAX_TOOLS:
            self._state = self._plain
            return True
        opener = self._syntax.opener
        before, found, rest = self._buffer.partition(opener)
        if not found:
            kept = next(n for n in range(min(len(opener) - 1, len(before)), -1, -1) if before.endswith(opener[:n]))
            self._say(before[: len(before) - kept])
            self._buffer = before[len(before) - kept :]
            return False
        self._say(before)
        self._raw, self._buffer = [opener], rest
        self._state = self._list if self._syntax.listed else self._call
        return True

    def _list(self) -> bool:
        """Before the bracket that opens a list of calls."""
        said = self._buffer.lstrip(_SPACE)
        self._raw.append(self._buffer[: len(self._buffer) - len(said)])
        self._buffer = said
        if said and said[0] == "[":
            self._raw.append("[")
            self._buffer, self._state = said[1:], self._call
        elif said:
            self._break()
        return True

    def _call(self) -> bool:
        text = self._buffer
        for at, char in enumerate(text):
            try:
                self._scanner.take(char)
            except _Malformed:
                self._raw.append(text[:at])
                self._buffer = text[at:]
                self._break()
                return True
            if self._scanner.whole:
                self._buffer = text[at + 1 :]
                self._end_call()
                return True
        self._raw.append(text)
        self._buffer = ""
        self._tell()
        return False

    def _tell(self) -> None:
        """Tell the name once the arguments have begun, and what is new of them."""
        scanner = self._scanner
        if scanner.name is None or not scanner.arguments:
            return
        if not self._telling:
            self._telling = True
            self._events.append(CallBegun(self._begun, scanner.name))
            self._begun += 1
        if len(scanner.arguments) > self._told_arguments:
            piece = "".join(scanner.arguments[self._told_arguments :])
            self._told_arguments = len(scanner.arguments)
            self._events.append(CallArguments(self._begun - 1, piece))

    def _end_call(self) -> None:
        self._tell()
        self._events.append(CallEnded(self._begun - 1))
        self.whole += 1
        self._gap = ""
        self._forget_call()
        self._state = self._after

    def _forget_call(self) -> None:
        self._raw, self._told_arguments, self._telling = [], 0, False
        self._scanner = self._new_scanner()

    def _break(self) -> None:
        """This is no call: say its text. What would have been told of it, had it come in smaller pieces, is told."""
        self._tell()
        if self._telling:
            self._events.append(CallBroken(self._begun - 1))
        text = "".join(self._raw)
        self._forget_call()
        self._say(text)
        again = bool(self._syntax.opener) and not (self._syntax.listed and self.whole)
        self._state = self._text if again else self._plain

    def _after(self) -> bool:
        """Behind a whole call: its closer, another call of the list, or the list's end."""
        said = self._buffer.lstrip(_SPACE)
        closer = self._syntax.closer
        if self._syntax.listed:
            return self._after_listed(said)
        if not closer:
            self._state = self._plain
            return True
        if len(said) < len(closer) and closer.startswith(said):
            return False
        self._state = self._text
        self._buffer = said.removeprefix(closer) if said.startswith(closer) else self._buffer
        return True

    def _after_listed(self, said: str) -> bool:
        if not said:
            return False
        if said[0] == "," and self._begun < limits.MAX_TOOLS:
            self._raw = [self._buffer[: len(self._buffer) - len(said) + 1]]
            self._buffer, self._state = said[1:], self._call
            return True
        self._state = self._plain
        self._buffer = said[1:] if said[0] == "]" else self._buffer
        return True
