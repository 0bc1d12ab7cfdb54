"""A streamed answer: lines of an event stream in, text and notices out. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from mesh_cli.exits import Exit
from mesh_cli.failure import Failure

REROUTE = "mesh rerouted"


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something happened on the way, such as a reroute; no part of the answer."""

    text: str


@dataclass(slots=True)
class Outcome:
    """What is known when the stream has ended."""

    text: str = ""
    finish: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    mesh: dict[str, Any] = field(default_factory=dict)
    reroutes: list[dict[str, str]] = field(default_factory=list)


def pieces(lines: Iterable[str], outcome: Outcome) -> Iterator[Piece | Notice]:
    """Text and notices as they come; ``outcome`` fills up meanwhile. Failure when the stream carries an error, or
    ends before it says that it is complete."""
    for line in lines:
        if line.startswith(":"):
            yield from _comment(line[1:].strip(), outcome)
        elif line.startswith("data:"):
            data = line[5:].strip()
            if data == "[DONE]":
                return
            yield from _chunk(data, outcome)
    raise Failure("truncated", "the answer broke off: the daemon went away", hint="mesh status, then try again")


def _comment(text: str, outcome: Outcome) -> Iterator[Notice]:
    if text.startswith(REROUTE):
        fields = dict(part.partition("=")[::2] for part in text.removeprefix(REROUTE).split())
        fields = {name: unquote(value) for name, value in fields.items()}
        outcome.reroutes.append(fields)
        yield Notice(_told(fields))


def _told(fields: dict[str, str]) -> str:
    worker, token, reason = fields.get("worker", "elsewhere"), fields.get("at_token"), fields.get("reason")
    at = f" from token {token}" if token else ""
    why = f" ({reason.replace('_', ' ')})" if reason else ""
    return f"goes on at {worker}{at}{why}"


def _chunk(data: str, outcome: Outcome) -> Iterator[Piece]:
    try:
        chunk = json.loads(data)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise Failure("truncated", "the daemon sent something that is no part of an answer")
    if "error" in chunk:
        raise _ended_badly(chunk)
    outcome.usage = chunk.get("usage") or outcome.usage
    if isinstance(chunk.get("mesh"), dict):
        outcome.mesh |= chunk["mesh"]
    for choice in chunk.get("choices") or ():
        outcome.finish = choice.get("finish_reason") or outcome.finish
        text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        if text:
            outcome.text += text
            yield Piece(text)


def _ended_badly(chunk: dict[str, Any]) -> Failure:
    from mesh_cli.client import failure_of

    failure = failure_of(chunk, "the answer ended in an error")
    if failure.exit is Exit.UNEXPECTED:
        failure.exit = Exit.NO_WORKER
    return failure
