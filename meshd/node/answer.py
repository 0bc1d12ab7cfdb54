"""Between a job's shell, which writes what the app may see, and the API, which reads it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

import trio

from meshd.core.errors import MeshError
from meshd.core.ids import JobId
from meshd.node.views import AnswerEvent, JobDone, Loading, TextDelta


class AnswerBuffer:
    """What was written and not read yet. Adjoining text is joined, so that a slow reader costs no more memory than
    the answer's own text, which the model's context bounds. Implements `meshd.node.views.Answer`."""

    def __init__(self, job: JobId) -> None:
        self.job = job
        self._waiting: deque[AnswerEvent] = deque()
        self._error: MeshError | None = None
        self._news = trio.Event()

    def write(self, event: AnswerEvent) -> None:
        """Add what comes next."""
        last = self._waiting[-1] if self._waiting else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            self._waiting[-1] = TextDelta(
                last.text + event.text, last.tokens + event.tokens, (*last.scored, *event.scored)
            )
        elif isinstance(event, Loading) and isinstance(last, Loading):
            self._waiting[-1] = event
        else:
            self._waiting.append(event)
        self._news.set()

    def fail(self, error: MeshError) -> None:
        """Nothing more comes: the job failed. What was written before is still read first."""
        self._error = error
        self._news.set()

    async def events(self) -> AsyncIterator[AnswerEvent]:
        """Everything written, in order, ending after JobDone; raises the error the job failed with."""
        while True:
            while self._waiting:
                event = self._waiting.popleft()
                yield event
                if isinstance(event, JobDone):
                    return
            if self._error is not None:
                raise self._error
            if self._news.is_set():
                self._news = trio.Event()
            await self._news.wait()
