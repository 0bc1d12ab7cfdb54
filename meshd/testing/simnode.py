"""A node of the simulated world: the real machines, the real wire codec, and a simulated engine.

It does what the trio shells do, one thing at a time, in virtual time. A dead node does nothing; a frozen one does
everything later, when it thaws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from meshd.core import limits
from meshd.core.ad import Ad, ModelOffer, OfferState
from meshd.core.errors import AdExpired, MeshError
from meshd.core.ids import AttemptId, JobId, NodeId
from meshd.core.share import Share
from meshd.core.task import LossReason
from meshd.core.trust import Certificate
from meshd.machine import execution_events as ex
from meshd.machine import membership_events as mem
from meshd.machine import submission_events as sub
from meshd.machine.execution import Execution
from meshd.machine.membership import Membership
from meshd.policy.admission import Host
from meshd.policy.feasible import Candidate, Facts, Infeasible
from meshd.policy.placement import PlacementView, place
from meshd.policy.suspicion import Liveness
from meshd.testing.plan import DIGEST, MODEL, Member
from meshd.testing.simapp import App
from meshd.testing.simnet import Clock, SimNet
from meshd.testing.simwork import Work
from meshd.wire import frames
from meshd.wire.ads import AdJudge, seal_ad
from meshd.wire.keys import NodeKey

if TYPE_CHECKING:
    from meshd.core.job import Job

WALL_S: Final = 1_800_000_000.0
"""Wall time at virtual time 0; every clock of the world agrees."""

AD_EVERY_S: Final = 5.0
DIRECTORY_EVERY_S: Final = 6.0
ENGINE_RESTS_S: Final = 1.0
NEIGHBOURS: Final = 3
GOSSIP_ADS: Final = 4
Directory = dict[NodeId, tuple[tuple[int, int], bytes]]


@dataclass(frozen=True, slots=True)
class Shared:
    """What all nodes of a world share: time, network, directory, and who watches."""

    clock: Clock
    net: SimNet
    directory: Directory
    judge: AdJudge
    watch: Watch


@dataclass(slots=True)
class Watch:
    """What the world's checks are told as it happens."""

    leases: dict[tuple[NodeId, AttemptId], NodeId] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    reroutes: int = 0
    attempts: int = 0


class SimNode:
    """One life of a node: ``boot`` counts them."""

    def __init__(
        self, shared: Shared, key: NodeKey, proof: bytes, certificate: Certificate, of: Member, boot: int
    ) -> None:
        self.me = key.node
        self.key = key
        self.member = of
        self.alive = True
        self.frozen = False
        self.shared = shared
        self.clock = shared.clock
        self.net = shared.net
        self.facts = Facts(certificate.region, certificate.clearance)
        self.membership = Membership(self.me, seed=boot)
        self.execution = Execution(self.me, of.slots)
        self.view = PlacementView()
        self.apps: dict[JobId, App] = {}
        self.work = Work(self)
        self.draining = False
        self.engine_up = True
        self._proof = proof
        self._certificate = certificate
        self._boot = boot
        self._seq = 0
        self._ads: dict[NodeId, bytes] = {}
        self._rng = Random(f"{self.me}/{boot}")
        self._held: list[Callable[[], None]] = []
        self._wake_s = float("inf")

    # -- life

    def start(self) -> None:
        """Begin the periodic work, at moments of its own."""
        self._update_self()
        for every_s, what in (
            (AD_EVERY_S, self._publish),
            (limits.HEARTBEAT_INTERVAL_S, self._beat),
            (DIRECTORY_EVERY_S, self._look_up),
            (1.0, self._gossip),
        ):
            self._every(every_s, self._rng.uniform(0, min(every_s, 1.0)), what)

    def _every(self, every_s: float, first_s: float, what: Callable[[], None]) -> None:
        def again() -> None:
            if self.alive:
                self.do(what)
                self.clock.at(self.clock.now_s + every_s, again)

        self.clock.at(self.clock.now_s + first_s, again)

    def do(self, todo: Callable[[], None]) -> None:
        """Do it now; later when frozen; never when dead. Then see when to wake next."""
        if not self.alive:
            return
        if self.frozen:
            self._held.append(todo)
            return
        todo()
        self.plan_wake()

    def thaw(self) -> None:
        """Do all that was held back."""
        self.frozen = False
        held, self._held = self._held, []
        for todo in held:
            self.do(todo)

    def plan_wake(self) -> None:
        """Wake at the first deadline of any machine."""
        due = [self.membership.next_deadline(), self.execution.next_deadline()]
        due += [a.machine.next_deadline() for a in self.apps.values() if a.running]
        first_s = min((d for d in due if d is not None), default=float("inf"))
        if first_s < self._wake_s:
            self._wake_s = first_s
            self.clock.at(first_s, lambda: self._alarm(first_s))

    def _alarm(self, at_s: float) -> None:
        """An alarm that an earlier one has overtaken is void."""
        if at_s == self._wake_s:
            self.do(self._wake)

    def _wake(self) -> None:
        self._wake_s = float("inf")
        self.member_event(mem.Tick(self.wall_s))
        self.work.feed(ex.Tick())
        for app in [a for a in self.apps.values() if a.running]:
            app.feed(sub.Tick())

    @property
    def wall_s(self) -> float:
        return WALL_S + self.clock.now_s

    # -- what it offers

    def host(self) -> Host:
        """This machine as admission sees it."""
        models = self._models() if self.member.shares else ()
        resting = {} if self.engine_up else {DIGEST: ENGINE_RESTS_S}
        return Host(self.facts, Share(enabled=self.member.shares), models, self.draining, resting)

    def _models(self) -> tuple[ModelOffer, ...]:
        if not self.member.shares:
            return ()
        rate = self.member.tokens_per_s
        return (ModelOffer(MODEL, DIGEST, 4096, 10 * rate, rate, ready=True),)

    def _state(self, free: int) -> OfferState:
        if not self.member.shares:
            return OfferState.NOT_SHARING
        if self.draining:
            return OfferState.DRAINING
        return OfferState.OPEN if free > 0 else OfferState.BUSY

    def ad(self) -> Ad:
        """A new ad of what is true now."""
        self._seq += 1
        free = max(0, self.member.slots - self.execution.running)
        address, name = "/ip4/10.0.0.1/tcp/1", self._certificate.name
        return Ad(
            self.me, self._boot, self._seq, self.wall_s, self.wall_s + limits.AD_TTL_S, name, (address,), 4, 2**33, (),
            self._models(), self.member.slots, free, self._state(free), "", "sim",
        )  # fmt: skip

    def update_self(self) -> None:
        """Slots or state changed: place by what is true now."""
        self._update_self()

    def _update_self(self) -> None:
        self.view.put(Candidate(self.ad(), self.facts, Liveness.ALIVE, local=True))

    def _publish(self) -> None:
        ad = self.ad()
        sealed = seal_ad(ad, self.key, self._proof)
        self._ads[self.me] = sealed
        self.shared.directory[self.me] = (ad.version, sealed)
        for peer in self.net.peers(self.me):
            self.say(peer, frames.Ads((sealed,)))

    # -- neighbours

    def say(self, peer: NodeId, message: frames.ControlMessage) -> None:
        """Send a control frame."""
        kind, payload = frames.encode_control(message)
        there = self.net.nodes[peer]
        self.net.send(self.me, peer, lambda: there.hear(self.me, kind, payload))

    def hear(self, peer: NodeId, kind: int, payload: bytes) -> None:
        """A control frame came."""
        self.member_event(mem.HeartbeatAnswered(peer))
        match frames.decode_control(kind, payload):
            case frames.Ads(ads):
                for sealed in ads:
                    self._hear_ad(sealed, peer)
            case frames.Bye():
                self.member_event(mem.PeerLeft(peer, self.wall_s))

    def _hear_ad(self, sealed: bytes, peer: NodeId | None) -> None:
        try:
            ad, certificate = self.shared.judge.open(None, sealed)
        except AdExpired:
            return
        via = mem.Source.DIRECTORY if peer is None else mem.Source.DIRECT if peer == ad.node else mem.Source.GOSSIP
        facts = Facts(certificate.region, certificate.clearance)
        self.member_event(mem.AdHeard(ad, facts, via, self.wall_s))
        known = self.membership.peer(ad.node)
        if known is not None and known.ad == ad:
            self._ads[ad.node] = sealed

    def _beat(self) -> None:
        peers = self.net.peers(self.me)
        if not peers:
            self._look_up()
        for peer in peers:
            self.say(peer, frames.Ping(1))
        for app in list(self.apps.values()):
            app.renew()

    def _gossip(self) -> None:
        peers = self.net.peers(self.me)
        if peers:
            chosen = self.membership.gossip(GOSSIP_ADS, self._rng.randrange(2**32))
            known = tuple(self._ads[a.node] for a in chosen if a.node in self._ads)
            self.say(self._rng.choice(peers), frames.Ads(known))

    def _look_up(self) -> None:
        """What the DHT's background refresh brings, and enough neighbours to hear news from."""
        for node, (version, sealed) in list(self.shared.directory.items()):
            known = self.membership.peer(node)
            if node != self.me and self.net.flowing(self.me, node) and (known is None or known.version < version):
                self._hear_ad(sealed, None)
        missing = NEIGHBOURS - len(self.net.peers(self.me))
        alive = [p.node for p in self.membership.peers() if self.membership.liveness(p.node) is Liveness.ALIVE]
        for node in self._rng.sample(alive, min(max(missing, 0), len(alive))):
            self.dial(node)

    def dial(self, node: NodeId) -> None:
        """Connect, or learn that it cannot be done."""

        def done(good: bool) -> None:
            if not good:
                self.member_event(mem.DialFailed(node, self.wall_s))

        self.net.dial(self.me, node, done)

    def peer_up(self, peer: NodeId) -> None:
        """The network says: connected, and the other side has proven its certificate."""
        self.member_event(mem.PeerUp(peer, self.net.nodes[peer].facts))
        if self.me in self._ads:
            self.say(peer, frames.Ads((self._ads[self.me],)))

    def peer_down(self, peer: NodeId) -> None:
        """The network says: the connection is gone."""
        if self.net.connected(self.me, peer):
            return
        self.member_event(mem.PeerDown(peer, self.wall_s))
        self.work.feed(ex.ConnectionLost(peer))
        for app in list(self.apps.values()):
            app.lost(peer, LossReason.CONNECTION_LOST)

    def member_event(self, event: mem.MembershipEvent) -> None:
        """Feed the membership machine and do what it says."""
        for effect in self.membership.handle(event, self.clock.now_s):
            match effect:
                case mem.Probe(node):
                    self.dial(node)
                case mem.Changed(node, _, after, _):
                    if after is Liveness.SUSPECT:
                        for app in list(self.apps.values()):
                            app.feed(sub.Suspected(node))
                case mem.Updated(node):
                    self._update_view(node)
                case mem.Forget(node):
                    self.view.remove(node)
                    self._ads.pop(node, None)
                case mem.Drop(node):
                    self.net.disconnect(self.me, node)

    def _update_view(self, node: NodeId) -> None:
        candidate = self.membership.candidate(node)
        if candidate is None:
            self.view.remove(node)
            return
        self.view.put(candidate)
        for app in [a for a in self.apps.values() if a.running]:
            app.feed(sub.CandidatesChanged())

    # -- apps

    def submit(self, job: Job, seed: int) -> App:
        """An app on this machine hands a job in."""
        app = self.apps[job.id] = App(self, job, seed)
        app.feed(sub.Submitted())
        return app

    def place(self, job: Job, ask: sub.AskPlacement) -> sub.Placed | sub.NoCandidate:
        """Who should get the job."""
        found = place(self.view, job, ask.excluded, ask.digest, self.clock.now_s)
        if found.worker is not None:
            return sub.Placed(found.worker)
        known = any(r is not Infeasible.NO_MODEL for r in found.reasons)
        return sub.NoCandidate(tuple(found.reasons), model_known=known)

    def problem(self, error: MeshError, where: str) -> None:
        """Between honest nodes nothing may ever fail to verify."""
        self.shared.watch.problems.append(f"{self.clock.now_s:.3f} {self.me[-4:]} {where}: {error.message}")
