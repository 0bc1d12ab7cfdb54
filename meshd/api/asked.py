"""What a parsed request asks for, whichever route it came by. Plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from meshd.core.generation import Generation
from meshd.core.ids import JobId
from meshd.core.job import Constraints, Embedding, Job, TaskKind, Tokenization

_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class TextRequest:
    """Answers in text: ``generations`` has one entry a prompt, each of which is answered ``n`` times.

    ``seed`` None: the app named none, the node draws one; ``sampling.seed`` of the generations does not count.
    ``echo``: the prompt's text is said before each answer. ``told``: what the answer repeats of the request.
    """

    model: str
    generations: tuple[Generation, ...]
    seed: int | None
    constraints: Constraints
    stream: bool
    n: int = 1
    include_usage: bool = False
    echo: bool = False
    told: dict[str, object] = field(default_factory=dict)

    def jobs(self, new_id: Callable[[], JobId], seed: int) -> tuple[Job, ...]:
        """One job a choice, in order of their index. ``seed`` is used when the app named none.

        The answers to one prompt have seeds that follow each other: they differ, and come again with the same seed.
        """
        first = seed if self.seed is None else self.seed
        return tuple(
            self._job(generation, new_id(), (first + i) % _SEEDS)
            for generation in self.generations
            for i in range(self.n)
        )

    def _job(self, generation: Generation, id: JobId, seed: int) -> Job:
        sampling = replace(generation.sampling, seed=seed)
        return Job(id, TaskKind.GENERATE, self.model, replace(generation, sampling=sampling), self.constraints)


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Vectors of texts. ``as_base64``: float32, little endian, in base64; else lists of numbers."""

    model: str
    embedding: Embedding
    constraints: Constraints
    as_base64: bool
    dimensions: int | None

    def jobs(self, new_id: Callable[[], JobId], seed: int) -> tuple[Job, ...]:
        """The one job that this asks for."""
        return (Job(new_id(), TaskKind.EMBED, self.model, None, self.constraints, embedding=self.embedding),)


@dataclass(frozen=True, slots=True)
class TokenizationRequest:
    """Tokens of a text (``back`` false), with their pieces when ``with_pieces``; or the text of tokens (``back``)."""

    model: str
    tokenization: Tokenization
    constraints: Constraints
    back: bool
    with_pieces: bool = False

    def jobs(self, new_id: Callable[[], JobId], seed: int) -> tuple[Job, ...]:
        """The one job that this asks for."""
        return (Job(new_id(), TaskKind.TOKENIZE, self.model, None, self.constraints, tokenization=self.tokenization),)


Request = TextRequest | EmbeddingRequest | TokenizationRequest
