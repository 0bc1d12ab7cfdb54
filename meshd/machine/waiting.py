"""How long a job waits when nobody takes it: for want of a candidate, in the queue for a busy one, for its model.

Nobody there: ``patience_s``, for a worker that was cut off may be back and an engine may be loading again. Everybody
busy: ``queue_s``, for each of them will be free some day. Nobody known to have the model at all: hardly any time. The
whole wait counts until a worker has begun, whoever declined meanwhile; but patience begins anew when those who were
busy are gone.
"""

from __future__ import annotations

from typing import Final

PATIENCE_S: Final = 5.0
"""How long a job waits for a candidate: a worker that was cut off may be back, an engine may be loading again."""

QUEUE_S: Final = 30.0
"""How long a job waits for busy workers: about what a person who asked waits."""

UNKNOWN_MODEL_S: Final = 1.0
"""How long a job waits for a model that no known node offers: a node that has just started knows nobody yet."""


class Waiting:
    """One job's. Times are monotonic seconds."""

    def __init__(self, patience_s: float, queue_s: float) -> None:
        self._patience_s = patience_s
        self._queue_s = max(patience_s, queue_s)
        self._since_s: float | None = None
        self._busy_at_s = 0.0
        self.asks = 0
        self.queued = False

    def over(self) -> None:
        """A worker has begun: the next wait is another one."""
        self._since_s, self.queued = None, False

    def asked(self) -> None:
        """The job asks for a worker."""
        self.asks += 1

    def give_up_s(self, now_s: float, *, busy: bool, nowhere: bool) -> float:
        """There is nobody now: until when to go on asking. ``busy``: somebody could, but for others' work.
        ``nowhere``: nobody is known to have the model."""
        if self._since_s is None:
            self._since_s, self.asks = now_s, 1
            self._busy_at_s = now_s
        self.queued = busy
        if busy:
            self._busy_at_s = now_s
            return self._since_s + self._queue_s
        if nowhere:
            return self._since_s + min(self._patience_s, UNKNOWN_MODEL_S)
        return min(self._busy_at_s + self._patience_s, self._since_s + self._queue_s)
