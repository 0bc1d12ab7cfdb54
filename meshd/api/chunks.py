"""What the bytes of all answers share: comments, events, usage, and what an answer is to whoever sends it. Pure.

All JSON is ASCII, because some clients split events at U+2028 and its like.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii
from typing import Protocol
from urllib.parse import quote

from meshd.api.errors import mesh_error_object
from meshd.core.errors import MeshError
from meshd.core.generation import Opening, Usage
from meshd.core.ids import JobId
from meshd.node.views import ItemsDelta, JobDone, Loading, Rerouted, TextDelta

KEEPALIVE = b": mesh waiting\n\n"
DONE = b"data: [DONE]\n\n"
MARK = '"\x00"'  # cannot occur in serialised JSON, so that it splits a template safely

quoted = encode_basestring_ascii


class Streamed(Protocol):
    """The bytes of a streamed answer. ``choice`` counts the request's jobs from 0; after every one's ``done`` comes
    one ``end``. ``failed`` may come at any time instead, and is the last."""

    def opened(self, choice: int, opening: Opening) -> bytes: ...

    def text(self, choice: int, delta: TextDelta) -> bytes: ...

    def done(self, choice: int, done: JobDone, attempts: int) -> bytes: ...

    def end(self) -> bytes: ...

    def failed(self, error: MeshError) -> bytes: ...


class Whole(Protocol):
    """An answer that is sent when all is done. ``large``: making the body takes long enough for a thread."""

    def opened(self, choice: int, opening: Opening) -> None: ...

    def take(self, choice: int, delta: TextDelta | ItemsDelta) -> None: ...

    def done(self, choice: int, done: JobDone, attempts: int) -> None: ...

    @property
    def large(self) -> bool: ...

    def body(self) -> dict[str, object]:
        """The answer as JSON. Raises MeshError when what came is not an answer to what was asked."""


def reroute_comment(event: Rerouted) -> bytes:
    """A line that SSE clients skip and people may read; values are percent-encoded, so it stays one line."""
    fields = {
        "attempt": str(event.attempt),
        "worker": event.worker_name or event.worker,
        "at_token": str(event.at_token),
        "reason": event.reason,
    }
    text = " ".join(f"{name}={quote(value)}" for name, value in fields.items())
    return f": mesh rerouted {text}\n\n".encode()


def loading_comment(event: Loading) -> bytes:
    """A line that SSE clients skip: the model is being loaded, and so much of it is there."""
    return f": mesh loading worker={quote(event.worker_name)} percent={event.fraction * 100:.0f}\n\n".encode()


def event_bytes(body: object) -> bytes:
    """One event without a name, as chat and completions stream them."""
    return b"data: " + json.dumps(body).encode("ascii") + b"\n\n"


def error_event(error: MeshError) -> bytes:
    """The event that ends a stream which cannot be completed; nothing may follow it."""
    return event_bytes(mesh_error_object(error))


def template_of(chunk: dict[str, object]) -> tuple[str, str]:
    """The two halves of an event that has MARK in place of its text."""
    before, after = json.dumps(chunk).split(json.dumps(MARK))
    return f"data: {before}", f"{after}\n\n"


def total(usages: Sequence[Usage], n: int) -> Usage:
    """The usage of a request whose prompts were answered ``n`` times each: a prompt counts once, and as cached only
    what every answer to it found cached."""
    prompts = [usages[at : at + n] for at in range(0, len(usages), n)]
    return Usage(
        sum(max(u.prompt_tokens for u in of) for of in prompts),
        sum(u.completion_tokens for u in usages),
        sum(min(u.cached_tokens for u in of) for of in prompts),
    )


def usage_object(usage: Usage) -> dict[str, object]:
    """OpenAI's ``usage``."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class Account:
    """What became of the jobs of one request: their usage and receipts. ``n``: answers a prompt."""

    def __init__(self, jobs: Sequence[JobId], n: int) -> None:
        self._jobs = jobs
        self._n = n
        self._usages: list[Usage] = [Usage(0, 0)] * len(jobs)
        self._mesh: list[dict[str, object]] = [{"job": job} for job in jobs]

    def done(self, choice: int, done: JobDone, attempts: int) -> dict[str, object]:
        """Note a job's end; its ``mesh`` object."""
        self._usages[choice] = done.usage
        self._mesh[choice] = {"job": self._jobs[choice], "receipt": done.receipt_id, "attempts": attempts}
        return self._mesh[choice]

    @property
    def usage(self) -> Usage:
        """Of all jobs together."""
        return total(self._usages, self._n)

    @property
    def mesh(self) -> dict[str, object]:
        """The ``mesh`` object of the whole answer: that of its job, or those of its jobs."""
        return self._mesh[0] if len(self._mesh) == 1 else {"jobs": self._mesh}
