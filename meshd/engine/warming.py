"""Compiles grammars beside the decoding: a schema may take a second, and nobody else's answer shall wait for it.

A thread cannot be stopped. A grammar that takes longer than ``COMPILE_TIMEOUT_S`` is given up, its thread left to
itself; when ``_MAX_THREADS`` are at it, further new grammars are declined, and known ones still serve.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meshd.core.errors import BadInput, Overloaded
from meshd.core.generation import Generation
from meshd.engine.constraint import Grammars
from meshd.engine.prompts import Form

COMPILE_TIMEOUT_S: Final = 30.0
"""The largest schemas that pass the bounds take about one second; so does a large vocabulary, once. A machine that is
busy with other things may take ten times as long."""

_MAX_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class Waiting:
    """A generation whose grammar is being compiled."""

    request: Generation
    delivered: list[int]
    form: Form
    until_s: float
    owner: str


class Warming:
    """Generations that wait for a grammar. ``tell`` is called in another thread when one is ready."""

    def __init__(self, grammars: Grammars, tell: Callable[[int], None]) -> None:
        self._grammars = grammars
        self._tell = tell
        self._waiting: dict[int, Waiting] = {}
        self._threads: list[threading.Thread] = []

    @property
    def busy(self) -> bool:
        """Whether any generation waits."""
        return bool(self._waiting)

    def begin(
        self, id: int, request: Generation, delivered: list[int], form: Form, now_s: float, owner: str = ""
    ) -> None:
        """Compile ``form`` for that generation. Raises Overloaded when too many are being compiled."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) >= _MAX_THREADS:
            raise Overloaded("the engine compiles enough schemas", retry_after_s=1.0)
        self._waiting[id] = Waiting(request, delivered, form, now_s + COMPILE_TIMEOUT_S, owner)
        thread = threading.Thread(target=self._compile, args=(id, form.text), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _compile(self, id: int, text: str) -> None:
        try:
            with contextlib.suppress(BadInput):  # Whoever asked is told when it starts.
                self._grammars.warm(text)
        finally:
            self._tell(id)

    def take(self, id: int) -> Waiting | None:
        """The generation, which waits no longer; None when it left or was given up."""
        return self._waiting.pop(id, None)

    def overdue(self, now_s: float) -> list[tuple[int, BadInput]]:
        """Generations whose grammar took too long; they wait no longer."""
        late = [(id, waiting) for id, waiting in self._waiting.items() if now_s >= waiting.until_s]
        for id, _ in late:
            del self._waiting[id]
        return [(id, BadInput("the schema takes too long to compile", param=w.form.param)) for id, w in late]
