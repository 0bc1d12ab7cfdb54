"""Tokens of a text, and pieces of tokens: each is one token of the job's answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from meshd.core import limits
from meshd.core.errors import BadInput, MeshError, Overloaded
from meshd.core.generation import FinishReason
from meshd.core.job import Tokenization
from meshd.engine.decoding import WINDOW_TOKENS, refusal
from meshd.engine.frames import Message

_STEP_TOKENS: Final = 256
"""Told at once: a fraction of a millisecond."""


@dataclass(slots=True)
class _Job:
    id: int
    tokens: list[int]
    produced: int
    acknowledged: int


class Tokenising:
    """All jobs of this kind. ``text`` gives a token's bytes, control tokens spelt out."""

    def __init__(
        self, tokens_of: Callable[[Tokenization], list[int]], text: Callable[[int], bytes], max_jobs: int
    ) -> None:
        self._tokens_of = tokens_of
        self._text = text
        self._max_jobs = max_jobs
        self._jobs: dict[int, _Job] = {}

    @property
    def busy(self) -> bool:
        """Whether any job is unfinished."""
        return bool(self._jobs)

    def start(self, id: int, work: Tokenization, delivered: Sequence[int]) -> list[Message]:
        """Admit a job that goes on after the ``delivered`` tokens: ``started``, or ``refused``."""
        try:
            tokens = self._tokens(work, len(delivered))
        except MeshError as error:
            return [refusal(id, error)]
        started: Message = ["started", id, len(tokens), [], 0, ""]
        if len(delivered) == len(tokens):
            return [started, ["finished", id, str(FinishReason.STOP)]]
        self._jobs[id] = _Job(id, tokens, len(delivered), len(delivered))
        return [started]

    def _tokens(self, work: Tokenization, delivered: int) -> list[int]:
        if len(self._jobs) >= self._max_jobs:
            raise Overloaded("the engine has enough texts to tokenise", retry_after_s=1.0)
        tokens = self._tokens_of(work)
        if len(tokens) > limits.MAX_OUTPUT_TOKENS:
            raise BadInput(f"the text has more than {limits.MAX_OUTPUT_TOKENS} tokens", param="prompt")
        if delivered > len(tokens):
            raise BadInput("more tokens were delivered than there are", param="delivered")
        return tokens

    def cancel(self, id: int) -> None:
        """Forget the job. Unknown ids are ignored."""
        self._jobs.pop(id, None)

    def acknowledge(self, id: int, tokens: int) -> None:
        """The reader took so many more tokens."""
        if id in self._jobs:
            self._jobs[id].acknowledged += tokens

    def step(self) -> list[Message] | None:
        """Tell the next tokens of every job whose reader keeps up; None when there is nothing to do."""
        able = [job for job in self._jobs.values() if job.produced - job.acknowledged < WINDOW_TOKENS]
        return [message for job in able for message in self._tell(job)] if able else None

    def _tell(self, job: _Job) -> list[Message]:
        part = job.tokens[job.produced : job.produced + _STEP_TOKENS]
        messages: list[Message] = [["tokens", job.id, job.produced, [[token, self._text(token)] for token in part]]]
        job.produced += len(part)
        if job.produced == len(job.tokens):
            self.cancel(job.id)
            messages.append(["finished", job.id, str(FinishReason.STOP)])
        return messages
