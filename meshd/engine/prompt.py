"""From messages to prompt text: the model's own chat template, or a plain one where it has none.

The plain template writes system text first, then ``User:`` and ``Assistant:`` lines, and ends with ``Assistant:``. A
base model would write the next user turn itself, so ``PLAIN_STOP`` is added to the stops of such an answer, on every
worker and on resume alike.

Templates come with model files and are code: they run in Jinja's immutable sandbox, with bounded output and time. No
clock is offered to them (``strftime_now``): a prompt must read the same on the worker that resumes it.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from meshd.core import limits
from meshd.core.chat import Message
from meshd.core.errors import BadInput

PLAIN_STOP: Final = "\nUser:"
RENDER_TIMEOUT_S: Final = 2.0
"""Real templates take milliseconds."""

MAX_RENDERED_CHARS: Final = 2 * limits.MAX_PROMPT_BYTES
_PRIVATE_USE: Final = (0xE000, 0x10FFFE)
"""Private use and beyond: a million code points of four bytes, twice what fits a prompt."""

_PLAIN_NAMES: Final = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


def plain_chat(messages: Sequence[Message]) -> str:
    """The documented plain form, for models without a template."""
    system = [m.content for m in messages if m.role in ("system", "developer")]
    turns = [f"{_PLAIN_NAMES[m.role]}: {m.content}" for m in messages if m.role in _PLAIN_NAMES]
    head = "\n".join(system) + "\n\n" if system else ""
    return head + "\n".join([*turns, "Assistant:"])


@dataclass(frozen=True, slots=True)
class Marked:
    """Messages with a mark in place of each content, and the contents."""

    messages: tuple[Message, ...]
    contents: tuple[str, ...]
    sign: str

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Rendered text in parts, each with whether the template wrote it (True) or a message did (False)."""
        pieces = re.split(f"{self.sign}([0-9]+){self.sign}", text)
        parts = [(p, True) if i % 2 == 0 else (self.contents[int(p)], False) for i, p in enumerate(pieces)]
        return [(part, own) for part, own in parts if part]


def mark(messages: Sequence[Message]) -> Marked:
    """``messages`` for rendering such that what they say can be told from what the template says. Needed only where a
    content spells control tokens; the template then cannot trim or inspect contents."""
    contents = tuple(m.content for m in messages)
    used = set().union(*contents)
    sign = next(c for c in map(chr, range(*_PRIVATE_USE)) if c not in used)
    return Marked(tuple(Message(m.role, f"{sign}{i}{sign}") for i, m in enumerate(messages)), contents, sign)


class ChatTemplate:
    """A model's chat template, compiled once. Raises BadInput when it is not valid Jinja."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        self._tokens = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, MemoryError, ValueError) as error:
            raise BadInput(f"the model's chat template is broken: {error}", param="messages") from None

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt text, at most MAX_RENDERED_CHARS long, in at most RENDER_TIMEOUT_S seconds. Raises BadInput
        when the template refuses the messages or misbehaves. Main thread only (it arms a timer)."""
        turns = [{"role": "system" if m.role == "developer" else m.role, "content": m.content} for m in messages]
        try:
            with _deadline(RENDER_TIMEOUT_S):
                return _bounded(self._template.generate(messages=turns, add_generation_prompt=True, **self._tokens))
        except _TooSlow:
            raise BadInput("the model's chat template takes too long", param="messages") from None
        except (jinja2.TemplateError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
            raise BadInput(f"the model's chat template refuses: {error}", param="messages") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"the model's chat template fails: {error}", param="messages") from None


class _TooSlow(BaseException):
    """Raised by the timer; not an Exception, so that no template construct swallows it."""


def _bounded(pieces: Iterator[str]) -> str:
    parts = []
    size = 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > MAX_RENDERED_CHARS:
            raise BadInput("the model's chat template makes too long a prompt", param="messages")
    return "".join(parts)


@contextmanager
def _deadline(seconds_s: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer"):  # Windows: the pool's hang watchdog is the bound there.
        yield
        return
    before = signal.signal(signal.SIGALRM, _raise_too_slow)
    signal.setitimer(signal.ITIMER_REAL, seconds_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _raise_too_slow(_signal: int, _frame: object) -> NoReturn:
    raise _TooSlow


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(str(message)[:500])


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
