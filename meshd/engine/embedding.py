"""Turns texts into vectors, a small step at a time: running answers take their turns between the steps.

One job's texts are computed in order, several at once; each vector is one token of the job's answer: its index is the
text's place, its piece the vector. Jobs take turns, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from meshd.core.errors import BadInput, ContextOverflow, MeshError, Overloaded
from meshd.core.generation import FinishReason
from meshd.core.job import Embedding
from meshd.engine.decoding import WINDOW_TOKENS, refusal
from meshd.engine.frames import Message
from meshd.engine.llama_vectors import SEQUENCES, Part, States

_MEAN, _CLS, _LAST, _RANK = "1", "2", "3", "4"
_WHOLE_STEP_TOKENS: Final = 512
"""Where texts cannot be computed in parts, short ones share a step of about this size."""


class Vectors(Protocol):
    """What embeddings need of a model; see llama_vectors.py."""

    context_tokens: int
    step_tokens: int
    whole: bool
    pooling: str | None

    def states(self, parts: Sequence[Part]) -> list[States]: ...

    def clear(self) -> None: ...


@dataclass(slots=True)
class _Text:
    """One text under way: ``done`` of its tokens are computed, their states pooled."""

    index: int
    tokens: list[int]
    done: int = 0
    pooled: npt.NDArray[np.float64] | None = None

    def take(self, states: States, pooling: str | None) -> None:
        """Count in the states of its next tokens."""
        first = self.pooled is None
        self.done += len(states)
        if pooling == _LAST or (pooling == _CLS and first):
            self.pooled = states[-1 if pooling == _LAST else 0].astype(np.float64)
        elif pooling != _CLS:
            total = states.sum(axis=0, dtype=np.float64)
            self.pooled = total if self.pooled is None else self.pooled + total

    def vector(self) -> bytes:
        """The pooled states at length 1, as float32 in little endian. A mean and a sum point the same way."""
        pooled = np.zeros(0) if self.pooled is None else self.pooled
        length = float(np.linalg.norm(pooled))
        return bytes((pooled / length if length > 0 else pooled).astype("<f4").tobytes())


@dataclass(slots=True)
class _Job:
    id: int
    waiting: deque[_Text]
    produced: int
    acknowledged: int
    running: list[_Text] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Its reader lags."""
        return self.produced - self.acknowledged >= WINDOW_TOKENS


class Embeddings:
    """All embedding jobs of one model. ``open_vectors`` is called at the first one."""

    def __init__(
        self, open_vectors: Callable[[], Vectors], tokens_of: Callable[[Embedding], list[list[int]]], max_jobs: int
    ) -> None:
        self._open = open_vectors
        self._tokens_of = tokens_of
        self._max_jobs = max_jobs
        self._vectors: Vectors | None = None
        self._jobs: deque[_Job] = deque()

    @property
    def busy(self) -> bool:
        """Whether any job is unfinished."""
        return bool(self._jobs)

    def start(self, id: int, work: Embedding, delivered: Sequence[int]) -> list[Message]:
        """Admit a job of which so many vectors were ``delivered``: ``started``, or ``refused``."""
        try:
            texts = self._tokens_of(work)
            self._check(texts, len(delivered))
        except MeshError as error:
            return [refusal(id, error)]
        started: Message = ["started", id, sum(map(len, texts)), [], 0, ""]
        if len(delivered) == len(texts):
            return [started, ["finished", id, str(FinishReason.STOP)]]
        waiting = deque(_Text(i, tokens) for i, tokens in enumerate(texts) if i >= len(delivered))
        self._jobs.append(_Job(id, waiting, len(delivered), len(delivered)))
        return [started]

    def _check(self, texts: Sequence[Sequence[int]], delivered: int) -> None:
        if len(self._jobs) >= self._max_jobs:
            raise Overloaded("the engine has enough texts to embed", retry_after_s=1.0)
        if self._vectors is None:
            self._vectors = self._open()
        longest = max(map(len, texts))
        if longest > self._vectors.context_tokens:
            bound = self._vectors.context_tokens
            raise ContextOverflow(f"an input has {longest} tokens; this model takes {bound}", param="input")
        if any(not tokens for tokens in texts):
            raise BadInput("an input is empty", param="input")
        if delivered > len(texts):
            raise BadInput("more vectors were delivered than there are inputs", param="delivered")

    def cancel(self, id: int) -> None:
        """Forget the job. Unknown ids are ignored."""
        for job in [job for job in self._jobs if job.id == id]:
            self._jobs.remove(job)
            if job.running and self._vectors is not None:
                self._vectors.clear()

    def acknowledge(self, id: int, tokens: int) -> None:
        """The reader took so many more vectors."""
        for job in self._jobs:
            job.acknowledged += tokens if job.id == id else 0

    def step(self) -> list[Message] | None:
        """Compute a little; None when there is nothing to do."""
        job = self._next_job()
        if job is None or self._vectors is None:
            return None
        if not job.running:
            job.running = self._round(self._vectors, job.waiting)
        try:
            done = self._advance(self._vectors, job.running)
        except MeshError as error:
            self.cancel(job.id)
            return [refusal(job.id, error)]
        return self._tell(self._vectors, job, done)

    def _next_job(self) -> _Job | None:
        """The job whose texts are in the context, else the next one whose reader keeps up."""
        for _ in range(len(self._jobs)):
            if self._jobs[0].running or not self._jobs[0].held:
                return self._jobs[0]
            self._jobs.rotate(-1)
        return None

    def _round(self, vectors: Vectors, waiting: deque[_Text]) -> list[_Text]:
        """The next texts that fit into the context together."""
        room_tokens = min(_WHOLE_STEP_TOKENS, vectors.step_tokens) if vectors.whole else vectors.context_tokens
        texts = [waiting.popleft()]
        room_tokens -= len(texts[0].tokens)
        while waiting and len(texts) < SEQUENCES and len(waiting[0].tokens) <= room_tokens:
            texts.append(waiting.popleft())
            room_tokens -= len(texts[-1].tokens)
        return texts

    def _advance(self, vectors: Vectors, texts: list[_Text]) -> list[_Text]:
        """Compute a step of ``texts``; those that it completed."""
        room_tokens = vectors.step_tokens
        under_way: list[_Text] = []
        parts: list[Part] = []
        for sequence, text in enumerate(texts):
            count = min(room_tokens, len(text.tokens) - text.done)
            if count > 0:
                under_way.append(text)
                parts.append(Part(sequence, text.done, text.tokens[text.done : text.done + count]))
                room_tokens -= count
        for text, states in zip(under_way, vectors.states(parts), strict=True):
            text.take(states, vectors.pooling)
        return [text for text in under_way if text.done == len(text.tokens)]

    def _tell(self, vectors: Vectors, job: _Job, done: list[_Text]) -> list[Message]:
        messages: list[Message] = []
        if done:
            messages.append(["tokens", job.id, done[0].index, [[0, text.vector()] for text in done]])
            job.produced += len(done)
        if all(text.done == len(text.tokens) for text in job.running):
            vectors.clear()
            job.running = []
            self._jobs.rotate(-1)
            if not job.waiting:
                self._jobs.remove(job)
                messages.append(["finished", job.id, str(FinishReason.STOP)])
        return messages


def embeds(pooling: str | None, width: int) -> bool:
    """Whether a model of that pooling makes vectors, which must fit a frame with room."""
    return pooling != _RANK and 4 * width <= MAX_VECTOR_BYTES


MAX_VECTOR_BYTES: Final = 48 * 1024
"""12,288 numbers: a vector is one token's piece and must fit one frame of a running attempt."""
