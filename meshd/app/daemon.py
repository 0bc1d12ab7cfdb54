"""The composition root: builds every part of a node, connects them, runs them until somebody asks to stop."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass

import trio

import meshd
from meshd.api.app import build_app
from meshd.api.serve import serve
from meshd.app.addresses import enrol_addresses, host_port, with_node
from meshd.app.config import Config
from meshd.app.stores import DeskInvites, DiskStores
from meshd.app.supervise import keep_running
from meshd.core.ids import NodeId
from meshd.core.trust import Certificate
from meshd.engine.config import PoolConfig, UpstreamConfig
from meshd.engine.engines import Engines, open_engines
from meshd.engine.probe import MachineProbe
from meshd.net.config import NetConfig
from meshd.net.enrolment import EnrolmentListener
from meshd.net.mdns import local_discovery
from meshd.net.mesh_net import MeshNet, open_mesh_net
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
from meshd.node.upstreams import UpstreamDesk
from meshd.node.worker import Worker
from meshd.policy.admission import Host
from meshd.policy.placement import PlacementView
from meshd.store.counters import next_boot
from meshd.store.db import Database
from meshd.store.home import Home
from meshd.store.identity import Identity, load_identity
from meshd.store.issuer import Issuer, load_issuer, renew_own
from meshd.store.keyfile import api_token
from meshd.wire.ads import AdJudge
from meshd.wire.protocols import TASK
from meshd.wire.trust import MemberGate, open_chain

log = logging.getLogger("meshd.app")

SOFTWARE = f"meshd {meshd.__version__}"
SLACK_S = 1.0
"""What a job that nobody took may need to fail after its time is over, so that it fails with a status."""

HAND_OVER_S = 2.0
"""How long stopping waits for attempts of others to be handed over in order."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a node stands on: its home, its name, its disk."""

    home: Home
    config: Config
    identity: Identity
    database: Database
    issuer: Issuer | None
    proof: bytes
    boot: int

    @property
    def certificate(self) -> Certificate:
        """The certificate in ``proof``."""
        return open_chain(self.proof, self.identity.membership.org.root_key).certificate


class Node:
    """One node's parts, connected. Everything is built here and nowhere else."""

    def __init__(self, ground: Ground, stores: DiskStores, net: MeshNet, engines: Engines, guest: Guest) -> None:
        self.ground, self.net, self.engines, self.guest, self.stores = ground, net, engines, guest, stores
        self.probe = MachineProbe()
        self.cpu_threads = self.probe.machine().cpu_threads
        self.view = PlacementView()
        self.models = self._models()
        self.upstreams = UpstreamDesk(
            stores.upstreams, engines.upstreams, lambda: {file.name for file in self.models.files}
        )
        self.receipts = ReceiptKeeper(stores.ledger)
        self.worker = self._worker()
        self.advertiser = self._advertiser()
        self.presence = Presence(
            ground.identity.key, lambda: ground.proof, lambda: ground.certificate, self.advertiser, self.view
        )
        self.neighbours = self._neighbours()
        self.dialler = self._dialler()
        self.streams = TaskStreams(net.transport, self.worker.serve_local)
        self.submitter = self._submitter()
        self.enrolment = self._enrolment()
        self.service = MeshService(self._parts())

    def _models(self) -> Models:
        models = Models(
            self.stores.models,
            self.engines.files,
            lambda: limits_of(self.guest.share, self.cpu_threads),
            idle_unload_s=self.ground.config.engine.idle_unload_s,
            seed=int.from_bytes(os.urandom(4), "big"),
        )
        self.engines.files.listen(models.engine_died)
        return models

    def _worker(self) -> Worker:
        return Worker(
            self.ground.identity.key,
            self.ground.config.engine.slots,
            self.engines,
            self.models,
            self._host,
            self.receipts,
            lambda: self.ground.certificate.serial,
            self._name_of,
            time.time,
            self._changed,
        )

    def _advertiser(self) -> Advertiser:
        engine, certificate = self.ground.config.engine, self.ground.certificate
        me = Self(certificate.node, certificate.name, self.ground.boot, SOFTWARE, engine.context_tokens, engine.slots)
        return Advertiser(
            me,
            self.guest,
            self.engines,
            self.probe,
            lambda: self.worker.running,
            time.time,
            self.addresses,
            self.models.trouble,
        )

    def _neighbours(self) -> Neighbours:
        return Neighbours(
            self.net.transport,
            self.net.directory,
            AdJudge(self.ground.identity.membership.org.root_key, time.time),
            self.view,
            self.presence.sealed_ad,
            _rhythm(self.ground.config),
            time.time,
            SOFTWARE,
            os.urandom,
            self.ground.config.network.max_peers,
        )

    def _dialler(self) -> Dialler:
        network = self.ground.config.network
        return Dialler(
            self.net.transport,
            self.net.directory,
            self.stores.peers,
            self.ground.identity.membership.bootstrap,
            self.neighbours.addresses,
            self.neighbours.dial_failed,
            max_neighbours=network.max_neighbours,
            timeout_s=network.dial_timeout_s,
        )

    def _submitter(self) -> Submitter:
        jobs = self.ground.config.jobs
        return Submitter(
            self.ground.identity.key,
            self.view,
            self.streams,
            self.dialler,
            self.receipts,
            self._name_of,
            time.time,
            patience_s=jobs.patience_s,
            queue_s=jobs.queue_s,
            max_waiting=jobs.max_waiting,
            max_running=jobs.max_running,
            history=jobs.history,
            dial_timeout_s=self.ground.config.network.dial_timeout_s,
            random=os.urandom,
        )

    def addresses(self) -> tuple[str, ...]:
        """Where others reach this node."""
        return self.ground.config.network.announce or self.net.transport.addresses()

    def _name_of(self, node: NodeId) -> str:
        me = self.ground.certificate
        return me.name if node == me.node else self.neighbours.name_of(node)

    def _host(self) -> Host:
        return Host(
            facts_of(self.ground.certificate),
            self.guest.share,
            self.advertiser.offers(),
            self.guest.draining,
            self.models.resting(),
        )

    def _changed(self) -> None:
        """An attempt began or ended here: others should know the free slots."""
        self.presence.refresh()
        self.neighbours.announce()
        self.submitter.candidates_changed()

    def _enrolment(self) -> EnrolmentListener | None:
        issuer = self.ground.issuer
        if issuer is None:
            return None

        async def answer(request: bytes) -> bytes:
            return await trio.to_thread.run_sync(issuer.answer, request)

        return EnrolmentListener(answer)

    def _invites(self) -> DeskInvites | None:
        if self.ground.issuer is None or self.enrolment is None:
            return None
        listener, network = self.enrolment, self.ground.config.network
        return DeskInvites(
            self.ground.issuer,
            lambda: enrol_addresses(network, listener.port, self.addresses()),
            self._bootstrap,
            time.time,
        )

    def _bootstrap(self) -> list[str]:
        """Whom a new member should meet first: this node, and two others in case it is off by then."""
        own = [with_node(a, self.ground.certificate.node) for a in self.addresses()[:3]]
        others = [with_node(addresses[0], node) for node, addresses in self.neighbours.addresses() if addresses]
        return own + others[:2]

    def _parts(self) -> Parts:
        return Parts(
            org=self.ground.identity.membership.org,
            certificate=lambda: self.ground.certificate,
            guest=self.guest,
            advertiser=self.advertiser,
            presence=self.presence,
            engine=self.engines,
            probe=self.probe,
            models=self.models,
            neighbours=self.neighbours,
            submitter=self.submitter,
            worker=self.worker,
            view=self.view,
            invites=self._invites(),
            random=os.urandom,
            wall=time.time,
            software=SOFTWARE,
            preload=self.ground.config.engine.preload,
            upstreams=self.upstreams,
        )

    async def _discover(self) -> None:
        """Dial whoever says on this LAN to be of this organisation; the handshake finds out whether it is."""
        root = self.ground.identity.membership.org.root_key
        interfaces = self.ground.config.network.mdns_interfaces
        async with local_discovery(root, self.ground.certificate.node, self.addresses(), interfaces) as hints:
            async for hint in hints:
                self.dialler.hint(hint.node, hint.addresses)

    def _listeners(self) -> Listeners:
        return Listeners(
            self.submitter.candidates_changed,
            self.submitter.suspected,
            self.worker.connection_lost,
            self.dialler.wake,
            self.streams.forget,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything but the API, while in the context."""
        await self.models.reload()
        self.advertiser.set_models(self.models.files)
        self.engines.upstreams.on_change(self.service.models_changed)
        await self.upstreams.open_all()
        self.presence.refresh()
        self.net.transport.serve(TASK, self.worker.serve)
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            nursery.start_soon(keep_running, "the ledger", self.receipts.run)
            if self.enrolment is not None:
                host, port = host_port(self.ground.config.network.enrol_listen)
                await stack.enter_async_context(self.enrolment.listening(host, port))
            await stack.enter_async_context(self.worker.running_parts())
            await stack.enter_async_context(self.submitter.running_parts())
            await stack.enter_async_context(self.neighbours.running_parts(self._listeners()))
            nursery.start_soon(keep_running, "the dialler", self.dialler.run)
            if self.ground.config.network.mdns:
                nursery.start_soon(keep_running, "local discovery", self._discover)
            nursery.start_soon(keep_running, "preloading", self.service.keep_loaded)
            yield


def _rhythm(config: Config) -> Rhythm:
    return Rhythm(
        ad_interval_s=config.membership.ad_interval_s,
        gossip_interval_s=config.membership.gossip_interval_s,
        gossip_ads=config.membership.gossip_ads,
        publish_interval_s=config.directory.publish_interval_s,
        refresh_interval_s=config.directory.refresh_interval_s,
    )


def _pool_config(config: Config) -> PoolConfig:
    engine = config.engine
    return PoolConfig(
        slots=engine.slots,
        context_tokens=engine.context_tokens,
        prefill_chunk_tokens=engine.prefill_chunk_tokens,
        gpu_layers=engine.gpu_layers,
        load_timeout_s=engine.load_timeout_s,
        hang_after_s=engine.hang_after_s,
        priority=engine.priority,
        nice=engine.nice,
    )


def _upstream_config(config: Config) -> UpstreamConfig:
    return UpstreamConfig(**asdict(config.upstreams))


def _ground(home: Home, config: Config, database: Database) -> Ground:
    """Read who this node is. Raises NotEnrolled, HomeUnusable."""
    identity = load_identity(home)
    issuer = load_issuer(home, identity.membership.org, database, time.time)
    proof = identity.membership.proof
    if issuer is not None:
        proof = renew_own(home, identity, issuer, time.time()).proof
    return Ground(home, config, identity, database, issuer, proof, next_boot(database))


async def run_daemon(home: Home, config: Config) -> None:
    """Run the node of ``home`` until SIGTERM, SIGINT or `mesh down`.

    Raises AlreadyDone (a daemon runs there already), NotEnrolled, HomeUnusable, PortInUse.
    """
    with home.locked(), Database(home.database) as database:
        ground = _ground(home, config, database)
        stores = DiskStores(database, time.time)
        guest = Guest(await stores.settings.load_share(), stores.settings)
        root = ground.identity.membership.org.root_key
        gate = MemberGate(root, lambda: ground.proof, time.time)
        net_config = NetConfig(seed=ground.identity.key.seed, listen=config.network.listen)
        async with (
            open_engines(_pool_config(config), _upstream_config(config)) as engines,
            open_mesh_net(net_config, gate, AdJudge(root, time.time)) as net,
        ):
            node = Node(ground, stores, net, engines, guest)
            async with node.running():
                await _serve(node)


async def _serve(node: Node) -> None:
    """Serve the API until asked to stop, then hand over what runs."""
    home, service = node.ground.home, node.service
    config = node.ground.config
    patience_s = max(config.jobs.patience_s, config.jobs.queue_s) + SLACK_S
    app = build_app(service, lambda: api_token(home), keepalive_s=config.api.keepalive_s, patience_s=patience_s)
    api_token(home)
    async with trio.open_nursery() as nursery:
        url: str = await nursery.start(serve, app, "127.0.0.1", config.api.port)
        service.started(url)
        home.announce(url, os.getpid())
        try:
            log.info("%s is up at %s", node.ground.certificate.name, url)
            await _asked_to_stop(service)
            log.info("stopping")
            with trio.move_on_after(HAND_OVER_S):
                await node.worker.drain(trio.current_time())
        finally:
            home.retract()
            nursery.cancel_scope.cancel()


async def _asked_to_stop(service: MeshService) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                async for _ in signals:
                    service.stop.set()

            nursery.start_soon(listen)
            await service.stop.wait()
            nursery.cancel_scope.cancel()
