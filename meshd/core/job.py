"""A job as the app sees it, and where its attempts may run.

Whatever a job is, what comes back is a run of numbered tokens, so that one protocol carries it and a lost worker costs
nothing that was delivered: a generation's tokens; of an embedding, one token an input, whose piece is the vector
(float32, little endian); of a tokenisation, the tokens themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meshd.core import limits
from meshd.core.classes import DataClass, Region
from meshd.core.errors import BadInput
from meshd.core.generation import Generation, Prompt
from meshd.core.ids import JobId, parse_job_id


class TaskKind(StrEnum):
    """What the worker is asked to do. ``noop`` does nothing: it measures and probes the path."""

    GENERATE = "generate"
    EMBED = "embed"
    TOKENIZE = "tokenize"
    NOOP = "noop"


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a worker must satisfy: clearance at least ``data_class``; attested region within one of ``regions``
    (none given: anywhere)."""

    data_class: DataClass = DataClass.INTERNAL
    regions: tuple[Region, ...] = ()

    def __post_init__(self) -> None:
        if len(self.regions) > 16:
            raise BadInput("more than 16 regions", param="mesh.regions")


@dataclass(frozen=True, slots=True)
class Embedding:
    """Texts (or tokens) of which the model's vectors are wanted."""

    inputs: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.inputs) <= limits.MAX_INPUTS:
            raise BadInput(f"1 to {limits.MAX_INPUTS} inputs", param="input")
        if sum(i.size_bytes() for i in self.inputs) > limits.MAX_PROMPT_BYTES:
            raise BadInput(f"inputs larger than {limits.MAX_PROMPT_BYTES} bytes", param="input")


@dataclass(frozen=True, slots=True)
class Tokenization:
    """A text whose tokens are wanted, or tokens whose pieces are. ``special``: as a prompt begins, with the model's
    beginning-of-text where it has one."""

    prompt: Prompt
    special: bool = False


Work = Generation | Embedding | Tokenization


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of work as the app sees it. Of the three kinds of work exactly the one that ``kind`` names is there;
    none for a no-op."""

    id: JobId
    kind: TaskKind
    model: str
    generation: Generation | None = None
    constraints: Constraints = Constraints()
    embedding: Embedding | None = None
    tokenization: Tokenization | None = None

    def __post_init__(self) -> None:
        parse_job_id(self.id)
        given = {
            TaskKind.GENERATE: self.generation,
            TaskKind.EMBED: self.embedding,
            TaskKind.TOKENIZE: self.tokenization,
        }
        if any((work is not None) != (kind is self.kind) for kind, work in given.items()):
            raise BadInput("a job holds the work that its kind names, and no other", param="kind")
        if not 0 <= len(self.model) <= 200:
            raise BadInput("model name too long", param="model")

    @property
    def work(self) -> Work | None:
        """What the engine is asked for; None for a no-op."""
        return self.generation or self.embedding or self.tokenization
