"""What the node shows to the floors above: read-only pictures, and the service that the API serves.

All views are plain frozen dataclasses; `dataclasses.asdict` of each is what travels as JSON.
Wall times are seconds since the epoch, ages and durations are seconds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from meshd.core.classes import DataClass, Region
from meshd.core.generation import FinishReason, Opening, Token, Usage
from meshd.core.ids import JobId
from meshd.core.job import Job
from meshd.core.receipt import Receipt
from meshd.core.upstream import Upstream


@dataclass(frozen=True, slots=True)
class GpuView:
    name: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model as this node or a peer offers it."""

    name: str
    digest: str
    context_tokens: int
    ready: bool
    prefill_tokens_per_s: float
    generation_tokens_per_s: float
    rates: tuple[tuple[int, float], ...] = ()
    device: str = "cpu"
    abilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as this node sees it. ``liveness``: self, alive, suspect. ``state``/``reason``: from its ad.
    ``talked_age_s``: since it last spoke to us directly, None if never; ``heard_age_s``: since any news."""

    id: str
    name: str
    site: str
    region: str
    clearance: str
    liveness: str
    state: str
    reason: str
    talked_age_s: float | None
    heard_age_s: float
    cpu_threads: int
    memory_bytes: int
    gpus: tuple[GpuView, ...]
    models: tuple[ModelView, ...]
    slots: int
    slots_free: int
    addresses: tuple[str, ...]
    software: str


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One attempt: who ran it and how it ended (empty while it runs)."""

    number: int
    worker: str
    worker_name: str
    tokens: int
    outcome: str
    gap_ms: float | None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job this node submitted (``role`` submitter) or an attempt it ran for another (``role`` worker)."""

    id: str
    role: str
    kind: str
    model: str
    state: str
    submitter: str
    attempts: tuple[AttemptView, ...]
    prompt_tokens: int
    completion_tokens: int
    started_at: float
    ended_at: float | None
    finish: str


@dataclass(frozen=True, slots=True)
class ShareView:
    """The owner's limits and what follows from them."""

    enabled: bool
    paused: bool
    draining: bool
    cpu: float
    threads: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class OrgView:
    """The organisation and this node's certificate."""

    name: str
    root_key: str
    issuer: bool
    certificate_serial: int
    certificate_not_after: float
    site: str
    region: str
    clearance: str
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineView:
    """One engine; see `core.engine.EngineStatus`."""

    model: str
    digest: str
    pid: int
    rss_bytes: int
    slots: int
    slots_free: int
    state: str
    reason: str = ""
    loaded_fraction: float = 1.0


@dataclass(frozen=True, slots=True)
class StatusView:
    """`mesh status`: me, peers, running jobs, models, limits, on one screen."""

    me: NodeView
    org: OrgView
    share: ShareView
    peers: tuple[NodeView, ...]
    jobs: tuple[JobView, ...]
    models: tuple[ModelView, ...]
    engines: tuple[EngineView, ...]
    warnings: tuple[str, ...]
    api_url: str
    uptime_s: float
    version: str


@dataclass(frozen=True, slots=True)
class MeshModelView:
    """A model somewhere in the mesh, for /v1/models: ``nodes`` says where, ``ready`` on which of them it is loaded,
    ``local`` whether here."""

    name: str
    digest: str
    context_tokens: int
    nodes: tuple[str, ...]
    local: bool
    ready: tuple[str, ...] = ()
    abilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loading:
    """The worker loads the model for this job: so much of it is there (0 to 1)."""

    worker_name: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine has the prompt; what it says about it holds for the whole answer, whoever goes on with it."""

    opening: Opening


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of the answer (valid UTF-8, stop strings held back) and how many tokens it stands for. ``scored``:
    these tokens, where the request asked for their probabilities."""

    text: str
    tokens: int
    scored: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class ItemsDelta:
    """What came of work that is no text: vectors of an embedding, tokens of a tokenisation (see `core.job`)."""

    items: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Rerouted:
    """The answer goes on elsewhere: attempt ``attempt`` runs on ``worker_name``; ``at_token`` is the next index."""

    attempt: int
    worker: str
    worker_name: str
    at_token: int
    reason: str


@dataclass(frozen=True, slots=True)
class JobDone:
    """The answer is complete."""

    finish: FinishReason
    usage: Usage
    receipt: Receipt | None
    receipt_id: str


AnswerEvent = Loading | Opened | TextDelta | ItemsDelta | Rerouted | JobDone


class Answer(Protocol):
    """A running job as the API reads it."""

    @property
    def job(self) -> JobId: ...

    def events(self) -> AsyncIterator[AnswerEvent]:
        """Text (or items) as it comes, then exactly one JobDone; or raises the MeshError the job failed with (NoWorker,
        ContextOverflow, UnknownModel, BadInput, Overloaded)."""


@dataclass(frozen=True, slots=True)
class InviteRequest:
    """What `mesh invite` asks for."""

    site: str
    region: Region
    clearance: DataClass
    valid_s: float
    uses: int
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NoopRequest:
    """``count`` no-op tasks, ``concurrency`` at a time, to ``worker`` (a node's id or name; None: whoever the
    placement picks)."""

    worker: str | None = None
    count: int = 1
    concurrency: int = 1


@dataclass(frozen=True, slots=True)
class NoopReport:
    """Round trips of no-op tasks: their median, each of them, and the time for all (s)."""

    ms: float
    round_trips_ms: tuple[float, ...]
    wall_s: float


@dataclass(frozen=True, slots=True)
class UpstreamView:
    """A server that this node stands in front of. ``abilities`` (without ``resume``: an answer that broke off there
    is lost) and ``prompts`` (chat, text) are what it showed; empty while it was not asked yet. ``formats``: a JSON
    schema binds its answers. ``state``: ready, resting (it failed; ``reason`` says how) or loading (not asked yet)."""

    name: str
    url: str
    model: str
    digest: str
    class_max: str
    has_key: bool
    slots: int
    slots_free: int
    context_tokens: int
    state: str
    reason: str
    generation_tokens_per_s: float
    abilities: tuple[str, ...]
    prompts: tuple[str, ...]
    formats: bool


class Service(Protocol):
    """The node as the local API serves it. Every method raises only MeshErrors."""

    def submit(self, job: Job) -> AbstractAsyncContextManager[Answer]:
        """Run a job; leaving the context early cancels it everywhere."""

    def new_job_id(self) -> JobId: ...

    def new_seed(self) -> int:
        """A seed for a request that named none."""

    def mesh_models(self) -> tuple[MeshModelView, ...]: ...

    async def status(self) -> StatusView: ...

    async def nodes(self) -> tuple[NodeView, ...]: ...

    async def jobs(self) -> tuple[JobView, ...]:
        """Running and recent jobs, newest first (bounded)."""

    async def share(self, cpu: float | None, memory_bytes: int | None) -> ShareView:
        """Opt in (and set limits; None keeps what was). Also ends pause and drain."""

    async def unshare(self) -> ShareView: ...

    async def pause(self) -> ShareView: ...

    async def resume(self) -> ShareView: ...

    async def drain(self, deadline_s: float) -> ShareView:
        """Take nothing new; hand over what still runs after ``deadline_s``. Returns when idle."""

    async def add_model(self, path: str, name: str | None) -> ModelView:
        """Verify and register a GGUF file. Raises ModelInvalid, NotFound, AlreadyDone."""

    async def remove_model(self, name: str) -> None: ...

    async def upstreams(self) -> tuple[UpstreamView, ...]:
        """The servers that this node stands in front of."""

    async def add_upstream(self, upstream: Upstream) -> UpstreamView:
        """Ask the server what it can do, and offer it. Raises BadInput, Unreachable, Overloaded, AlreadyDone."""

    async def remove_upstream(self, name: str) -> None:
        """Forget it, key and all. Raises NotFound."""

    async def invite(self, request: InviteRequest) -> str:
        """A new invite as text. Raises NotAuthorised when this node is no issuer."""

    async def noop(self, request: NoopRequest) -> NoopReport:
        """No-op tasks, each signed and sealed like any other. Raises NoWorker, NotFound, Unreachable."""

    async def shutdown(self) -> None:
        """Ask the daemon to stop (returns before it has)."""
