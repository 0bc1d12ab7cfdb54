"""A mesh of whole nodes in one trio run: real shells, machines, codec and keys; network, engine and disk are fakes.

`MeshNode` composes a node as `meshd.app.daemon` does. A node is killed by breaking its connections and ending its
tasks in one step; frozen, cut off and thawed by the fake network.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from meshd.app.supervise import keep_running
from meshd.core.classes import DataClass, Region
from meshd.core.engine import ModelFile
from meshd.core.generation import Generation, Prompt, Usage
from meshd.core.ids import AttemptId, NodeId, job_id
from meshd.core.job import Constraints, Job, TaskKind
from meshd.core.share import Share
from meshd.core.trust import Certificate, Delegation, Organisation
from meshd.machine.execution import Execution
from meshd.node.advertiser import Advertiser, Self
from meshd.node.dialler import Dialler
from meshd.node.guest import Guest, limits_of
from meshd.node.models import Models
from meshd.node.neighbours import Listeners, Neighbours, Rhythm, facts_of
from meshd.node.presence import Presence
from meshd.node.receipts import ReceiptKeeper
from meshd.node.service import MeshService, Parts
from meshd.node.streams import TaskStreams
from meshd.node.submitter import Submitter
from meshd.node.views import AnswerEvent, JobDone, JobView, Rerouted, TextDelta
from meshd.node.worker import Worker
from meshd.policy.admission import Host
from meshd.policy.placement import PlacementView
from meshd.policy.suspicion import Liveness
from meshd.testing.fakes import FAKE_DIGEST, FAKE_MODEL, FakeEngine, FakeProbe, fake_answer
from meshd.testing.network import FakeNetwork, FakeStream
from meshd.wire.ads import AdJudge
from meshd.wire.keys import NodeKey
from meshd.wire.protocols import TASK
from meshd.wire.trust import issue_certificate, issue_delegation
from tests.helpers import until
from tests.node.stores import Disk, MemoryBook, MemoryLedger, MemoryModels, MemorySettings

WALL_S = 1_800_000_000.0
"""Wall time when a test begins."""

DAY_S = 86_400.0
SOFTWARE = "meshd test"
ROOT = NodeKey(bytes([1]) * 32)
ISSUER = NodeKey(bytes([2]) * 32)
ORG = Organisation("lab", ROOT.verify_key)
DELEGATION = issue_delegation(
    Delegation(ROOT.verify_key, ISSUER.verify_key, DataClass.RESTRICTED, WALL_S - DAY_S, WALL_S + 9 * DAY_S, 1), ROOT
)
MODEL = ModelFile(FAKE_MODEL, FAKE_DIGEST, "fake.gguf", 1000)
SHARED = Share(enabled=True, cpu=1.0)
PROMPT = "tell me"
ANYWHERE = Constraints()
RHYTHM = Rhythm(3.0, 1.0, 12, 5.0, 10.0)
PATIENCE_S = 5.0
QUEUE_S = 30.0
HANGS_AFTER_S = 300.0


@dataclass(frozen=True)
class Setup:
    """What a node is made of."""

    name: str
    share: Share = SHARED
    models: tuple[ModelFile, ...] = (MODEL,)
    clearance: DataClass = DataClass.RESTRICTED
    region: str = "eu/de/berlin"
    max_running: int = 64
    max_waiting: int = 64
    queue_s: float = QUEUE_S
    idle_unload_s: float = 0.0
    max_neighbours: int = 32
    skew_s: float = 0.0
    bootstrap: tuple[str, ...] = ()


def certificate_of(key: NodeKey, setup: Setup) -> Certificate:
    """The organisation's statement about a node of the test."""
    return Certificate(
        ROOT.verify_key,
        key.node,
        setup.name,
        "lab",
        Region(setup.region),
        setup.clearance,
        (),
        ("member",),
        WALL_S - 60,
        WALL_S + 7 * DAY_S,
        42,
    )


class MeshNode:
    """One node's parts, connected as the composition root connects them."""

    def __init__(self, network: FakeNetwork, setup: Setup, key: NodeKey, boot: int, engine: FakeEngine) -> None:
        self.network, self.setup, self.key, self.engine = network, setup, key, engine
        self.node = key.node
        self.certificate = certificate_of(key, setup)
        self.proof = issue_certificate(self.certificate, ISSUER, DELEGATION)
        self.transport = network.transport(self.certificate)
        self.directory = network.directory(self.node)
        self.skew_s = setup.skew_s
        self.random = random.Random(f"{setup.name}/{boot}").randbytes
        self.disk = Disk()
        self.ledger = MemoryLedger(self.disk)
        self.book = MemoryBook()
        self.settings = MemorySettings(setup.share, self.disk)
        self.probe = FakeProbe()
        self.opened: list[tuple[NodeId, str]] = []
        self._count_streams()
        self.view = PlacementView()
        self.guest = Guest(setup.share, self.settings)
        self.model_store = MemoryModels(setup.models)
        self.models = Models(
            self.model_store, engine, lambda: limits_of(self.guest.share, 4), idle_unload_s=setup.idle_unload_s
        )
        self.receipts = ReceiptKeeper(self.ledger)
        self._compose(boot)
        self.scope = trio.CancelScope()
        self.asked_to_stop = trio.Event()
        self.ended = trio.Event()

    def _count_streams(self) -> None:
        plain = self.transport.open_stream

        async def counted(node: NodeId, protocol: str, timeout_s: float) -> FakeStream:
            self.opened.append((node, protocol))
            return await plain(node, protocol, timeout_s)

        self.transport.open_stream = counted  # type: ignore[method-assign]

    def _compose(self, boot: int) -> None:
        slots = self.engine.slots
        self.worker = Worker(
            self.key,
            slots,
            self.engine,
            self.models,
            self._host,
            self.receipts,
            lambda: self.certificate.serial,
            self.name_of,
            self.wall,
            self._changed,
        )
        me = Self(self.node, self.setup.name, boot, SOFTWARE, 4096, slots)
        addresses, trouble = self.transport.addresses, self.models.trouble
        self.advertiser = Advertiser(
            me, self.guest, self.engine, self.probe, lambda: self.worker.running, self.wall, addresses, trouble
        )
        self.presence = Presence(self.key, lambda: self.proof, lambda: self.certificate, self.advertiser, self.view)
        self.neighbours = self._neighbours()
        self.dialler = Dialler(
            self.transport,
            self.directory,
            self.book,
            self.setup.bootstrap,
            self.neighbours.addresses,
            self.neighbours.dial_failed,
            max_neighbours=self.setup.max_neighbours,
            timeout_s=3.0,
        )
        self.streams = TaskStreams(self.transport, self.worker.serve_local)
        self.submitter = self._submitter()
        self.service = MeshService(self._parts())

    def _neighbours(self) -> Neighbours:
        judge = AdJudge(ROOT.verify_key, self.wall)
        return Neighbours(
            self.transport,
            self.directory,
            judge,
            self.view,
            self.presence.sealed_ad,
            RHYTHM,
            self.wall,
            SOFTWARE,
            self.random,
            4096,
        )

    def _submitter(self) -> Submitter:
        return Submitter(
            self.key,
            self.view,
            self.streams,
            self.dialler,
            self.receipts,
            self.name_of,
            self.wall,
            patience_s=PATIENCE_S,
            queue_s=self.setup.queue_s,
            max_waiting=self.setup.max_waiting,
            max_running=self.setup.max_running,
            history=20,
            dial_timeout_s=3.0,
            random=self.random,
        )

    def _parts(self) -> Parts:
        return Parts(
            org=ORG,
            certificate=lambda: self.certificate,
            guest=self.guest,
            advertiser=self.advertiser,
            presence=self.presence,
            engine=self.engine,
            probe=self.probe,
            models=self.models,
            neighbours=self.neighbours,
            submitter=self.submitter,
            worker=self.worker,
            view=self.view,
            invites=None,
            random=self.random,
            wall=self.wall,
            software=SOFTWARE,
            preload=True,
        )

    def wall(self) -> float:
        """This node's clock."""
        return WALL_S + trio.current_time() + self.skew_s

    def name_of(self, node: NodeId) -> str:
        """A node's name as the shells show it."""
        return self.setup.name if node == self.node else self.neighbours.name_of(node)

    def _host(self) -> Host:
        facts, share = facts_of(self.certificate), self.guest.share
        return Host(facts, share, self.advertiser.offers(), self.guest.draining, self.models.resting())

    def _changed(self) -> None:
        self.presence.refresh()
        self.neighbours.announce()
        self.submitter.candidates_changed()

    def _listeners(self) -> Listeners:
        changed, suspected = self.submitter.candidates_changed, self.submitter.suspected
        return Listeners(changed, suspected, self.worker.connection_lost, self.dialler.wake, self.streams.forget)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live until killed, or asked to stop."""
        with self.scope:
            async with self._running():
                task_status.started()
                await self.asked_to_stop.wait()
                with trio.move_on_after(2):
                    await self.worker.drain(trio.current_time())
        self.ended.set()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        await self.models.reload()
        self.advertiser.set_models(self.models.files)
        self.presence.refresh()
        self.transport.serve(TASK, self.worker.serve)
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            nursery.start_soon(keep_running, "the ledger", self.receipts.run)
            await stack.enter_async_context(self.worker.running_parts())
            await stack.enter_async_context(self.submitter.running_parts())
            await stack.enter_async_context(self.neighbours.running_parts(self._listeners()))
            nursery.start_soon(keep_running, "the dialler", self.dialler.run)
            nursery.start_soon(keep_running, "preloading", self.service.keep_loaded)
            self.service.started("")
            yield

    # -- what tests look at

    @property
    def execution(self) -> Execution:
        """The worker's machine."""
        return self.worker._machine

    def sees(self, other: MeshNode) -> Liveness:
        """How alive ``other`` looks from here."""
        return self.neighbours.liveness(other.node)

    def knows(self, other: MeshNode) -> bool:
        """Whether work could go to ``other``: alive, and an ad of it is here."""
        return self.sees(other) is Liveness.ALIVE and self.view.get(other.node) is not None

    def jobs(self, role: str = "submitter") -> list[JobView]:
        """Views of jobs in that role, newest first."""
        return [j for j in (*self.submitter.jobs(), *self.worker.jobs()) if j.role == role]

    def idle(self) -> bool:
        """Whether nothing is left of any attempt, on either side."""
        return not (
            self.worker._hosted
            or self.execution._runs
            or self.submitter._talks
            or self.submitter._running
            or self.engine.running
            or self.streams._lent
        )


@dataclass
class Outcome:
    """What an app got of one job."""

    text: str = ""
    tokens: int = 0
    done: JobDone | None = None
    reroutes: list[Rerouted] = field(default_factory=list)
    events: list[AnswerEvent] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)

    def take(self, event: AnswerEvent) -> None:
        """Add an event."""
        self.events.append(event)
        self.times_s.append(trio.current_time())
        match event:
            case TextDelta(text, tokens):
                self.text += text
                self.tokens += tokens
            case Rerouted():
                self.reroutes.append(event)
            case JobDone():
                self.done = event

    @property
    def usage(self) -> Usage:
        """Of the finished job."""
        assert self.done is not None
        return self.done.usage


class Mesh:
    """Nodes on one network. ``start`` them, run jobs, break things."""

    def __init__(self, network: FakeNetwork, nursery: trio.Nursery) -> None:
        self.network, self.nursery = network, nursery
        self.nodes: dict[str, MeshNode] = {}
        self._jobs = 0
        self._boots = 0

    async def start(self, setup: Setup | str, **engine: object) -> MeshNode:
        """A running node; the first one started is everybody's bootstrap."""
        setup = Setup(setup) if isinstance(setup, str) else setup
        first = next(iter(self.nodes.values()), None)
        if first is not None and not setup.bootstrap and first.setup.name != setup.name:
            address = f"{first.transport.addresses()[0]}/p2p/{first.node}"
            setup = Setup(**{**setup.__dict__, "bootstrap": (address,)})
        self._boots += 1
        key = NodeKey(setup.name.encode().ljust(32, b"."))
        node = MeshNode(self.network, setup, key, self._boots, FakeEngine(**engine))  # type: ignore[arg-type]
        self.nodes[setup.name] = node
        await self.nursery.start(node.run)
        return node

    async def met(self, *nodes: MeshNode, timeout_s: float = 15.0) -> None:
        """Return when each of ``nodes`` (all, for none) knows each other."""
        chosen = nodes or tuple(self.nodes.values())
        await until(lambda: all(a.knows(b) for a in chosen for b in chosen if a is not b), timeout_s, "meeting")

    def kill(self, node: MeshNode) -> None:
        """SIGKILL."""
        self.network.kill(node.node)
        node.scope.cancel()

    def job(
        self,
        text: str = PROMPT,
        *,
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        constraints: Constraints = ANYWHERE,
        model: str = FAKE_MODEL,
    ) -> Job:
        """A job nobody had before."""
        self._jobs += 1
        generation = Generation(Prompt(text), max_tokens=max_tokens, stop=stop)
        return Job(self.new_id(), TaskKind.GENERATE, model, generation, constraints)

    def new_id(self) -> str:  # type: ignore[override]
        """A fresh job id."""
        self._jobs += 1
        return job_id(self._jobs.to_bytes(16, "big"))


async def run_job(node: MeshNode, job: Job, outcome: Outcome | None = None) -> Outcome:
    """Run ``job`` from an app at ``node`` to its end; raises the error it failed with."""
    outcome = outcome if outcome is not None else Outcome()
    async with node.service.submit(job) as answer:
        async for event in answer.events():
            outcome.take(event)
    return outcome


@asynccontextmanager
async def mesh_of(*setups: Setup | str, **engine: object) -> AsyncIterator[Mesh]:
    """A mesh of these nodes, met. A test that hangs fails: beacons keep virtual time running, so that it would hang
    for ever otherwise."""
    with trio.fail_after(HANGS_AFTER_S):
        async with FakeNetwork() as network, trio.open_nursery() as nursery:
            mesh = Mesh(network, nursery)
            for setup in setups:
                await mesh.start(setup, **engine)
            await mesh.met()
            yield mesh
            nursery.cancel_scope.cancel()


def client(name: str = "app") -> Setup:
    """A node that offers nothing."""
    return Setup(name, Share(), ())


def text_of(job: Job, length: int = 20) -> str:
    """The whole text of the answer that fake engines give."""
    assert job.generation is not None
    return b"".join(token.piece for token in fake_answer(job.generation, length)).decode()


def attempt(job: Job, number: int = 1) -> AttemptId:
    """An attempt of ``job``."""
    return AttemptId(job.id, number)


async def all_idle(nodes: Sequence[MeshNode], timeout_s: float = 10.0) -> None:
    """Return when nothing is left of any attempt on ``nodes``."""
    await until(partial(_idle, nodes), timeout_s, "idleness")


def _idle(nodes: Sequence[MeshNode]) -> bool:
    return all(node.idle() for node in nodes)
