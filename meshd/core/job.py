"""A job as the app sees it, and where its attempts may run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meshd.core.classes import DataClass, Region
from meshd.core.errors import BadInput
from meshd.core.generation import Generation
from meshd.core.ids import JobId, parse_job_id


class TaskKind(StrEnum):
    """What the worker is asked to do. ``noop`` does nothing: it measures and probes the path."""

    GENERATE = "generate"
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
class Job:
    """One unit of work as the app sees it. ``generation`` is None exactly for a no-op."""

    id: JobId
    kind: TaskKind
    model: str
    generation: Generation | None
    constraints: Constraints = Constraints()

    def __post_init__(self) -> None:
        parse_job_id(self.id)
        if (self.generation is None) != (self.kind is TaskKind.NOOP):
            raise BadInput("a generate job needs a generation, a no-op none", param="kind")
        if not 0 <= len(self.model) <= 200:
            raise BadInput("model name too long", param="model")
