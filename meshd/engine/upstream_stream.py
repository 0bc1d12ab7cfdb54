"""What a server streams, as numbered tokens. Pure.

A server tells pieces of text, not tokens: each piece counts as one token, and where the server says at the end how
many there really were, tokens without text make up the difference. So an app's usage is the server's, and no answer
has more tokens than were asked for: the last place that max_tokens allows takes whatever text is left.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from meshd.core import limits
from meshd.core.errors import EngineFailed
from meshd.core.generation import FinishReason, Token
from meshd.core.toolsyntax import HERMES
from meshd.engine.upstream_faults import Garbled, readable

TEXT_ID: Final = 0
"""Nobody here knows the vocabulary: every piece has the same id."""

MAX_PIECE_BYTES: Final = 16 * 1024
MAX_HELD_BYTES: Final = 60_000
"""What the last place may hold: a piece on the wire has 64 KiB."""

MAX_SILENT_TOKENS: Final = 65_536
"""Tokens without text that are made up for at the end: a long thought, not a number without sense."""

MAX_DIMENSIONS: Final = 15_000
"""Of a vector: as many as the piece of one token holds."""

MAX_CALL_BYTES: Final = 512 * 1024
"""Calls of tools in one answer, altogether."""

_FINISH: Final = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.STOP,
    "function_call": FinishReason.STOP,
}


class Numbered:
    """Gives text its places in the answer, from ``first`` on and below ``limit``."""

    def __init__(self, first: int, limit: int) -> None:
        self._first, self._next, self._limit = first, first, limit
        self._held = b""
        self._beyond = 0

    def put(self, text: str) -> Iterator[Token]:
        """The tokens for a piece of text; one without text, too, counts. Raises Garbled: more than was asked for."""
        for piece in _cut(text.encode("utf-8", "replace")):
            if self._next < self._limit - 1:
                yield self._token(piece)
                continue
            self._held += piece
            self._beyond += 1
            if len(self._held) > MAX_HELD_BYTES or self._beyond > MAX_SILENT_TOKENS:
                raise Garbled("the server goes on beyond the tokens that were asked for")

    def close(self, counted: int | None) -> Iterator[Token]:
        """What was held back, then tokens without text until there are as many as the server ``counted``."""
        if self._held:
            yield self._token(self._held)
        wanted = min(self._limit, self._first + (counted or 0), self._next + MAX_SILENT_TOKENS)
        while self._next < wanted:
            yield self._token(b"")

    def _token(self, piece: bytes) -> Token:
        self._next += 1
        return Token(self._next - 1, TEXT_ID, piece)


def _cut(data: bytes) -> Iterator[bytes]:
    """``data`` in pieces that a frame holds, whole characters each."""
    at = 0
    while True:
        end = at + MAX_PIECE_BYTES
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[at:end]
        at = end
        if at >= len(data):
            return


class Calls:
    """Calls of tools that come in parts, and leave as text that says the same to whoever reads HERMES."""

    def __init__(self) -> None:
        self._calls: dict[int, list[str]] = {}
        self._size_bytes = 0

    def take(self, parts: object) -> None:
        """Some more of them. Raises Garbled."""
        if not isinstance(parts, list):
            raise Garbled("the server's tool_calls are no list")
        for part in parts:
            self._take(part)

    def _take(self, part: object) -> None:
        function = part.get("function") if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(function, dict):
            raise Garbled("the server's tool_calls are not OpenAI's")
        name, arguments = function.get("name") or "", function.get("arguments") or ""
        index = part.get("index", len(self._calls))
        if not (isinstance(name, str) and isinstance(arguments, str) and isinstance(index, int)):
            raise Garbled("the server's tool_calls are not OpenAI's")
        self._size_bytes += len(name) + len(arguments)
        call = self._calls.setdefault(index, ["", ""])
        if len(self._calls) > limits.MAX_TOOLS or self._size_bytes > MAX_CALL_BYTES:
            raise Garbled("the server calls tools without end")
        call[0] += name
        call[1] += arguments

    def text(self, *, cut: bool) -> str:
        """All of them, in order; ``cut``: the last may be half written, and is told as far as it goes. Raises
        EngineFailed when arguments are no JSON object otherwise: such a call cannot be told."""
        return "\n".join(_written(name, arguments, cut) for _, (name, arguments) in sorted(self._calls.items()))


def _written(name: str, arguments: str, cut: bool) -> str:
    try:
        values = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        if cut:
            return f'{HERMES.opener}\n{{"name": {json.dumps(name)}, "{HERMES.arguments_key}": {arguments}'
        raise EngineFailed("the model calls a tool with arguments that are no JSON object")
    said = json.dumps({"name": name, HERMES.arguments_key: values}, ensure_ascii=False)
    return f"{HERMES.opener}\n{said}\n{HERMES.closer}"


@dataclass(slots=True)
class Counts:
    """What the server said of token counts so far. None: nothing."""

    prompt: int | None = None
    cached: int = 0
    completion: int | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Look into one event: OpenAI's ``usage``, or the ``timings`` of llama.cpp's server."""
        usage, timings = event.get("usage"), event.get("timings")
        if isinstance(usage, dict):
            self.prompt = _count(usage.get("prompt_tokens"), self.prompt)
            self.completion = _count(usage.get("completion_tokens"), self.completion)
            details = usage.get("prompt_tokens_details")
            if isinstance(details, dict):
                self.cached = _count(details.get("cached_tokens"), self.cached) or 0
        elif isinstance(timings, dict):
            new, cached = _count(timings.get("prompt_n"), None), _count(timings.get("cache_n"), 0)
            if new is not None:
                self.cached = cached or 0
                self.prompt = new + self.cached


def _count(value: object, otherwise: int | None) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if whole else otherwise  # type: ignore[return-value]


class Reading:
    """One streamed answer as it is read. ``skip``: blanks that were delivered before and may come again."""

    def __init__(self, numbered: Numbered, skip: str = "") -> None:
        self.finish: FinishReason | None = None
        self.counts = Counts()
        self._numbered = numbered
        self._skip = skip
        self._calls = Calls()

    def take(self, event: dict[str, Any]) -> list[Token]:
        """The tokens in the next event. Raises EngineFailed: the server broke off, or says what it must not."""
        if event.get("error"):
            error = event["error"]
            said = error.get("message") if isinstance(error, dict) else error
            raise EngineFailed(f"the server broke off: {readable(said)}")
        self.counts.take(event)
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices:
            return []
        return self._choice(choices[0])

    def _choice(self, choice: object) -> list[Token]:
        if not isinstance(choice, dict):
            raise Garbled("the server's choices are not OpenAI's")
        delta = choice.get("delta")
        said = delta if isinstance(delta, dict) else choice
        text = said.get("content") if said is delta else said.get("text")
        tokens: list[Token] = []
        if isinstance(text, str) and (text := self._unskipped(text)):
            tokens = list(self._numbered.put(text))
        elif said.get("reasoning_content") or said.get("reasoning"):
            tokens = list(self._numbered.put(""))  # a thought is not shown, but it is work done
        elif text is not None and not isinstance(text, str):
            raise Garbled("the server's text is no text")
        if said.get("tool_calls"):
            self._calls.take(said["tool_calls"])
        self._finish(choice.get("finish_reason"))
        return tokens

    def _unskipped(self, text: str) -> str:
        while self._skip and text:
            if text[0] != self._skip[0]:
                self._skip = ""
                break
            text, self._skip = text[1:], self._skip[1:]
        return text

    def _finish(self, reason: object) -> None:
        if not reason:
            return
        if not isinstance(reason, str) or reason not in _FINISH:
            raise EngineFailed(f"the server ended the answer early: {readable(reason)}")
        self.finish = _FINISH[reason]

    def close(self) -> tuple[list[Token], FinishReason]:
        """What is left to tell when the stream is over, and why it is. Raises EngineFailed: it is not complete."""
        if self.finish is None:
            raise EngineFailed("the server's answer ended without an end")
        tokens = (
            list(self._numbered.put(calls))
            if (calls := self._calls.text(cut=self.finish is FinishReason.LENGTH))
            else []
        )
        return [*tokens, *self._numbered.close(self.counts.completion)], self.finish


def vectors_in(answer: object, count: int) -> tuple[list[bytes], int]:
    """The ``count`` vectors of an answer to a request for embeddings, float32 in little endian, and how many tokens
    their texts had. Raises Garbled."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not isinstance(data, list) or len(data) != count:
        raise Garbled(f"the server does not answer with {count} vectors")
    found: dict[int, bytes] = {}
    for place, entry in enumerate(data):
        if not isinstance(entry, dict):
            raise Garbled("the server's vectors are not OpenAI's")
        index = entry.get("index")
        if index is not None and type(index) is not int:
            raise Garbled("the server numbers its vectors with something else than numbers")
        found[place if index is None else index] = _vector(entry.get("embedding"))
    if sorted(found) != list(range(count)):
        raise Garbled("the server leaves out vectors")
    counts = Counts()
    counts.take(answer)
    return [found[place] for place in range(count)], counts.prompt or 0


def _vector(values: object) -> bytes:
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_DIMENSIONS:
        raise Garbled(f"a vector has 1 to {MAX_DIMENSIONS} numbers")
    try:
        if all(map(math.isfinite, values)):
            return struct.pack(f"<{len(values)}f", *values)
    except (TypeError, OverflowError, struct.error):
        pass
    raise Garbled("a vector of something else than numbers")
