"""What will happen in a simulated world, as data made from a seed: who is there, what is asked, what breaks when."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import lru_cache
from random import Random
from typing import Final

from meshd.core.classes import DataClass, Region
from meshd.core.generation import FinishReason, Generation, Prompt, Token
from meshd.core.ids import JobId, ModelDigest
from meshd.core.job import Constraints, Job, TaskKind

MODEL: Final = "sim"
DIGEST: Final = ModelDigest("5e" * 32)
REGIONS: Final = ("eu/de/berlin", "eu/fr/paris", "us/ca", "eu/de/munich")


@dataclass(frozen=True, slots=True)
class Settings:
    """How large the world is and how bad things get. Shares are fractions of all nodes; times virtual seconds.

    Jobs and faults fall into the first ``busy_s``; then everything must come to rest within ``quiet_s``.
    """

    seed: int = 1
    nodes: int = 200
    jobs: int = 300
    kill: float = 0.2
    restart: float = 0.25
    freeze: float = 0.05
    cut: float = 0.05
    crash: float = 0.1
    leave: float = 0.05
    busy_s: float = 7.0
    quiet_s: float = 15.5

    def command(self) -> str:
        """The command that replays exactly this world."""
        default = Settings()
        given = [f.name for f in fields(self) if f.name == "seed" or getattr(self, f.name) != getattr(default, f.name)]
        options = " ".join(f"--{name.replace('_', '-')} {getattr(self, name)}" for name in given)
        return f"python -m meshd.testing.world {options}"


class FaultKind(StrEnum):
    """What befalls a node. ``kill`` may be followed by a restart; the others pass; ``leave`` drains and is gone."""

    KILL = "kill"
    FREEZE = "freeze"
    CUT = "cut"
    CRASH = "crash"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Fault:
    """At ``at_s`` it befalls ``node`` for ``for_s`` seconds (0: for good)."""

    at_s: float
    kind: FaultKind
    node: int
    for_s: float


@dataclass(frozen=True, slots=True)
class Member:
    """What a node is: where, how trusted, whether it shares, how fast and how wide its engine is."""

    region: Region
    clearance: DataClass
    shares: bool
    slots: int
    tokens_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Ask:
    """At ``at_s`` an app on ``node`` submits ``job``."""

    at_s: float
    node: int
    job: Job


def members(settings: Settings) -> list[Member]:
    """The nodes. Most share; all regions and clearances occur."""
    rng = Random(f"{settings.seed}/members")
    return [
        Member(
            region=Region(rng.choice(REGIONS)),
            clearance=rng.choice([DataClass.INTERNAL, DataClass.CONFIDENTIAL, DataClass.RESTRICTED]),
            shares=n < 4 or rng.random() < 0.75,
            slots=rng.choice([2, 3, 4]),
            tokens_per_s=rng.uniform(8, 30),
            latency_s=rng.uniform(0.0003, 0.01),
        )
        for n in range(settings.nodes)
    ]


def faults(settings: Settings) -> list[Fault]:
    """What goes wrong, in order of time; no node is hit by two kinds."""
    rng = Random(f"{settings.seed}/faults")
    nodes = list(range(settings.nodes))
    rng.shuffle(nodes)
    found: list[Fault] = []
    for kind, share in (
        (FaultKind.KILL, settings.kill),
        (FaultKind.FREEZE, settings.freeze),
        (FaultKind.CUT, settings.cut),
        (FaultKind.CRASH, settings.crash),
        (FaultKind.LEAVE, settings.leave),
    ):
        for _ in range(round(share * settings.nodes)):
            at_s = rng.uniform(0.2, 1.0) * settings.busy_s
            found.append(Fault(at_s, kind, nodes.pop(), _duration_s(kind, rng, settings)))
    return sorted(found, key=lambda f: (f.at_s, f.node))


def _duration_s(kind: FaultKind, rng: Random, settings: Settings) -> float:
    match kind:
        case FaultKind.KILL:
            return rng.uniform(1, 4) if rng.random() < settings.restart else 0.0
        case FaultKind.FREEZE | FaultKind.CUT:
            return rng.uniform(0.3, 6)
        case _:
            return rng.uniform(0.5, 3)


def asks(settings: Settings) -> list[Ask]:
    """The jobs, in order of time: short and long, some classified, some bound to a region, some with a stop string."""
    rng = Random(f"{settings.seed}/jobs")
    made = []
    for n in range(settings.jobs):
        job_id = JobId(f"job_{zlib.crc32(f'{settings.seed}/{n}'.encode()):08x}{n:024x}")
        max_tokens = rng.choice([None, None, rng.randint(1, 40)])
        stop = (f"<{rng.randint(1, 30)}:",) if rng.random() < 0.25 else ()
        regions = tuple(Region(r) for r in rng.choice([(), (), ("eu",), ("us", "eu/fr")]))
        data_class = rng.choice([DataClass.PUBLIC, DataClass.INTERNAL, DataClass.CONFIDENTIAL])
        request = Generation(Prompt(text=f"question {n}"), max_tokens=max_tokens, stop=stop)
        job = Job(job_id, TaskKind.GENERATE, MODEL, request, Constraints(data_class, regions))
        made.append(Ask(rng.uniform(2.0, settings.busy_s), rng.randrange(settings.nodes), job))
    return sorted(made, key=lambda a: (a.at_s, a.job.id))


def sim_token(job: Job, index: int) -> Token:
    """The token every simulated engine produces at ``index`` of ``job``: a function of nothing else."""
    number = zlib.crc32(f"{job.id}/{index}".encode())
    return Token(index, number, f"<{index}:{number % 1000}>".encode())


def sim_length(job: Job) -> int:
    """How many tokens the undisturbed answer has, were there no max_tokens and no stop string."""
    return 5 + zlib.crc32(job.id.encode()) % 40


@dataclass(frozen=True, slots=True)
class Answer:
    """What the app must have got in the end."""

    text: str
    finish: FinishReason


@lru_cache(maxsize=1024)
def engine_tokens(job: Job) -> tuple[tuple[Token, ...], FinishReason]:
    """What an engine produces for ``job``, and why it ends (it does not know stop strings)."""
    limit = job.generation.max_tokens if job.generation is not None else None
    length = sim_length(job)
    cut = limit is not None and limit <= length
    count = limit if cut and limit is not None else length
    return tuple(sim_token(job, i) for i in range(count)), FinishReason.LENGTH if cut else FinishReason.STOP


def expected(job: Job) -> Answer:
    """The undisturbed answer, worked out the plain way."""
    tokens, finish = engine_tokens(job)
    text = b"".join(t.piece for t in tokens).decode()
    for stop in job.generation.stop if job.generation is not None else ():
        if stop in text:
            return Answer(text[: text.index(stop)], FinishReason.STOP)
    return Answer(text, finish)
