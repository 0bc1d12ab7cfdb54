"""The node as its local API serves it. Implements `meshd.node.views.Service`."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePath

import trio

from meshd.core.classes import DataClass
from meshd.core.engine import EngineStatus
from meshd.core.errors import MeshError, NotAuthorised, NotFound
from meshd.core.ids import JobId, NodeId, job_id, parse_node_id
from meshd.core.job import Constraints, Job, TaskKind
from meshd.core.trust import Certificate, Organisation
from meshd.core.upstream import Upstream
from meshd.node import pictures
from meshd.node.advertiser import Advertiser
from meshd.node.answer import AnswerBuffer
from meshd.node.guest import Guest, limits_of
from meshd.node.models import Models
from meshd.node.neighbours import Neighbours
from meshd.node.ports import Engine, Probe
from meshd.node.presence import Presence
from meshd.node.stores import InviteIssuer
from meshd.node.submitter import Submitter
from meshd.node.upstreams import UpstreamDesk
from meshd.node.views import (
    InviteRequest,
    JobView,
    MeshModelView,
    ModelView,
    NodeView,
    NoopReport,
    NoopRequest,
    OrgView,
    ShareView,
    StatusView,
    UpstreamView,
)
from meshd.node.worker import Worker
from meshd.policy.placement import PlacementView

log = logging.getLogger("meshd.node")

LOOK_AGAIN_S = 30.0
"""How soon a file that was bad, and is another one now, is found out."""

MIN_IDLE_LOOK_S = 1.0
"""A model in use looks unused for as long as its answer lasts: not worth more than a look a second."""

EXPIRES_SOON_S = 3 * 86_400
"""A certificate that ends within three days is worth a warning."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the service speaks for."""

    org: Organisation
    certificate: Callable[[], Certificate]
    guest: Guest
    advertiser: Advertiser
    presence: Presence
    engine: Engine
    probe: Probe
    models: Models
    neighbours: Neighbours
    submitter: Submitter
    worker: Worker
    view: PlacementView
    invites: InviteIssuer | None
    random: Callable[[int], bytes]
    wall: Callable[[], float]
    software: str
    preload: bool
    upstreams: UpstreamDesk | None = None


class MeshService:
    """One node's service. ``stop`` is set when somebody asked the daemon to end."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._started_s = trio.current_time()
        self._preload_wanted = trio.Event()
        self.stop = trio.Event()
        self.api_url = ""
        parts.models.listen(self._models_in_trouble)

    # -- jobs

    @asynccontextmanager
    async def submit(self, job: Job) -> AsyncIterator[AnswerBuffer]:
        """Run a job; leaving the context early cancels it everywhere. Raises Overloaded."""
        async with self._parts.submitter.submit(job) as answer:
            yield answer

    def new_job_id(self) -> JobId:
        """A job id that nobody used before."""
        return job_id(self._parts.random(16))

    def new_seed(self) -> int:
        """A seed for a request that named none."""
        return int.from_bytes(self._parts.random(4), "big")

    async def noop(self, request: NoopRequest) -> NoopReport:
        """No-op tasks through the mesh, timed. Raises NoWorker, NotFound, BadInput."""
        only = None if request.worker is None else self._named(request.worker)
        times_ms: list[float] = []
        faults: list[MeshError] = []
        left = iter(range(request.count))
        began_s = trio.current_time()

        async def one_after_the_other() -> None:
            try:
                for _ in left:
                    times_ms.append(await self._noop(only))
            except MeshError as e:
                faults.append(e)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(request.concurrency):
                nursery.start_soon(one_after_the_other)
        if faults:
            raise faults[0]
        return NoopReport(statistics.median(times_ms), tuple(times_ms), trio.current_time() - began_s)

    async def _noop(self, only: NodeId | None) -> float:
        job = Job(self.new_job_id(), TaskKind.NOOP, "", None, Constraints(DataClass.PUBLIC))
        began_s = trio.current_time()
        async with self._parts.submitter.submit(job, only) as answer:
            async for _ in answer.events():
                pass  # the only event is the last
        return (trio.current_time() - began_s) * 1000

    def _named(self, worker: str) -> NodeId:
        """The known node of that name or id."""
        for candidate in self._parts.view:
            if worker in (candidate.node, self._parts.neighbours.name_of(candidate.node), candidate.ad.name):
                return candidate.node
        try:
            return parse_node_id(worker)
        except MeshError:
            raise NotFound(f"no node named {worker!r} is known", hint="see `mesh nodes`") from None

    async def jobs(self) -> tuple[JobView, ...]:
        """Running and recent jobs, newest first."""
        both = [*self._parts.submitter.jobs(), *self._parts.worker.jobs()]
        return tuple(sorted(both, key=lambda j: j.started_at, reverse=True))

    # -- looking

    def mesh_models(self) -> tuple[MeshModelView, ...]:
        """Models of this node and of every peer that may get work."""
        self._parts.presence.sealed_ad()
        candidates = list(self._parts.view)
        names: dict[str, str] = {c.node: self._parts.neighbours.name_of(c.node) for c in candidates if not c.local}
        names[self._parts.presence.node] = self._parts.certificate().name
        return pictures.mesh_models(candidates, names)

    async def status(self) -> StatusView:
        """Everything on one screen."""
        parts = self._parts
        certificate = parts.certificate()
        ad = parts.presence.candidate().ad
        return StatusView(
            me=pictures.self_view(ad, certificate),
            org=self._org(certificate),
            share=self._share(),
            peers=self._peers(),
            jobs=tuple(j for j in await self.jobs() if j.ended_at is None),
            models=tuple(pictures.model_view(m) for m in ad.models),
            engines=tuple(pictures.engine_view(s) for s in (*parts.models.status(), *self._behind())),
            warnings=self._warnings(certificate),
            api_url=self.api_url,
            uptime_s=trio.current_time() - self._started_s,
            version=parts.software,
        )

    def _behind(self) -> tuple[EngineStatus, ...]:
        """The upstreams, which the models know nothing of: there is nothing to load."""
        names = self._parts.upstreams.names() if self._parts.upstreams is not None else set()
        return tuple(s for s in self._parts.engine.status() if s.model in names)

    def _org(self, certificate: Certificate) -> OrgView:
        return pictures.org_view(self._parts.org, certificate, issuer=self._parts.invites is not None)

    def _peers(self) -> tuple[NodeView, ...]:
        now_s, neighbours = trio.current_time(), self._parts.neighbours
        views = [pictures.peer_view(p, neighbours.certificate_of(p.node), now_s) for p in neighbours.peers()]
        return tuple(sorted(views, key=lambda v: (v.liveness, v.name, v.id)))

    def _warnings(self, certificate: Certificate) -> tuple[str, ...]:
        left_s = certificate.not_after - self._parts.wall()
        warnings = [self._parts.neighbours.clock_warning] if self._parts.neighbours.clock_warning else []
        if left_s < EXPIRES_SOON_S:
            warnings.append(f"this node's certificate ends in {max(0.0, left_s) / 3600:.0f} h")
        return tuple(warnings)

    async def nodes(self) -> tuple[NodeView, ...]:
        """This node, then every peer."""
        me = pictures.self_view(self._parts.presence.candidate().ad, self._parts.certificate())
        return (me, *self._peers())

    # -- the owner's will

    def _share(self) -> ShareView:
        guest = self._parts.guest
        return pictures.share_view(guest.share, self._parts.probe.machine().cpu_threads, draining=guest.draining)

    async def share(self, cpu: float | None, memory_bytes: int | None) -> ShareView:
        """Opt in, with limits; what is None stays as it was. Ends pause and drain. Raises BadInput."""
        changes = {"cpu": cpu, "memory_bytes": memory_bytes}
        given = {key: value for key, value in changes.items() if value is not None}
        await self._parts.guest.change(enabled=True, paused=False, draining=False, **given)
        self._parts.worker.undrain()
        return await self._changed()

    async def unshare(self) -> ShareView:
        """Opt out: nothing new from others; what runs for them is handed over at once."""
        await self._parts.guest.change(enabled=False, paused=False)
        view = await self._changed()
        with trio.move_on_after(5):
            await self._parts.worker.drain(trio.current_time())
        self._parts.worker.undrain()
        return view

    async def pause(self) -> ShareView:
        """Take nothing new from others for a while; what runs goes on."""
        await self._parts.guest.change(paused=True)
        return await self._changed()

    async def resume(self) -> ShareView:
        """End a pause or a drain."""
        await self._parts.guest.change(paused=False, draining=False)
        self._parts.worker.undrain()
        return await self._changed()

    async def drain(self, deadline_s: float) -> ShareView:
        """Take nothing new; what still runs for others after ``deadline_s`` is handed over. Returns when idle."""
        await self._parts.guest.change(draining=True)
        await self._changed()
        await self._parts.worker.drain(trio.current_time() + deadline_s)
        return self._share()

    async def _changed(self) -> ShareView:
        guest, parts = self._parts.guest, self._parts
        await parts.engine.limit(limits_of(guest.share, parts.probe.machine().cpu_threads))
        parts.models.forgive()
        parts.presence.refresh()
        parts.neighbours.announce()
        self._preload_wanted.set()
        return self._share()

    # -- models and members

    async def add_model(self, path: str, name: str | None) -> ModelView:
        """Verify and register a GGUF file. Raises NotFound, ModelInvalid, AlreadyDone."""
        if self._parts.upstreams is not None:
            self._parts.upstreams.check_free(name or PurePath(path).stem)
        file = await self._parts.models.add(path, name)
        self.models_changed()
        self._preload_wanted.set()
        return pictures.model_view(self._parts.advertiser.offer(file))

    async def upstreams(self) -> tuple[UpstreamView, ...]:
        """The servers that this node stands in front of."""
        return self._parts.upstreams.views() if self._parts.upstreams is not None else ()

    async def add_upstream(self, upstream: Upstream) -> UpstreamView:
        """Ask the server what it can do, and offer it. Raises BadInput, Unreachable, Overloaded, AlreadyDone."""
        if self._parts.upstreams is None:
            raise NotAuthorised("this node takes no upstreams")
        view = await self._parts.upstreams.add(upstream)
        self.models_changed()
        return view

    async def remove_upstream(self, name: str) -> None:
        """Forget it, key and all. Raises NotFound."""
        if self._parts.upstreams is None:
            raise NotFound(f"no upstream named {name!r} here")
        await self._parts.upstreams.remove(name)
        self.models_changed()

    async def remove_model(self, name: str) -> None:
        """Unregister a model and free its engine; the file stays. Raises NotFound."""
        await self._parts.models.remove(name)
        self.models_changed()

    def models_changed(self) -> None:
        """Tell the mesh what can run here now."""
        self._parts.advertiser.set_models(self._parts.models.usable())
        self._parts.presence.refresh()
        self._parts.neighbours.announce()
        self._parts.submitter.candidates_changed()

    def _models_in_trouble(self) -> None:
        """A model failed, or made room: others should know, and it is to be loaded again in time."""
        self.models_changed()
        self._preload_wanted.set()

    async def keep_loaded(self) -> None:
        """Load registered models while the node shares, so that the first job does not wait for it, and again after a
        failure; unload what is not used. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_unloaded)
            while True:
                await self._preload_due()
                await self._parts.models.look_again()
                self.models_changed()
                if self._parts.preload and self._parts.guest.share.enabled:
                    for file in self._parts.models.to_preload():
                        if await self._parts.models.preload(file):
                            self.models_changed()

    async def _preload_due(self) -> None:
        """Return when something changed, when a model has rested, and now and then while a file is bad."""
        models = self._parts.models
        next_look_s = trio.current_time() + LOOK_AGAIN_S if len(models.usable()) < len(models.files) else math.inf
        with trio.move_on_at(min(models.next_try_s(), next_look_s)):
            await self._preload_wanted.wait()
        self._preload_wanted = trio.Event()

    async def _keep_unloaded(self) -> None:
        """Unload models that are not used; nothing that becomes unused meanwhile is due before the sleep ends."""
        models = self._parts.models
        while (due_s := models.next_idle_s()) < math.inf:
            await trio.sleep_until(max(due_s, trio.current_time() + MIN_IDLE_LOOK_S))
            await models.unload_idle()

    async def invite(self, request: InviteRequest) -> str:
        """A new invite. Raises NotAuthorised when this node holds no issuer key, BadInput (beyond its rights)."""
        if self._parts.invites is None:
            raise NotAuthorised(
                "this node cannot issue invites", hint="run it on the machine where `mesh org init` ran"
            )
        return await self._parts.invites.create(request)

    def started(self, api_url: str) -> None:
        """The daemon is up: the API is at ``api_url``, registered models may be loaded."""
        self.api_url = api_url
        self.models_changed()
        self._preload_wanted.set()

    async def shutdown(self) -> None:
        """Ask the daemon to end."""
        self.stop.set()
