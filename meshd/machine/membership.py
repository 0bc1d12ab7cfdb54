"""This node's view of its peers: who is there, who is suspect, who is gone, and how it knows.

Theory
------
"Heard about" and "talked to" are two things. An ad, from whomever, is news about a node at the time it was issued;
it lives until it expires, ten seconds. Talking, on a connection of our own, is knowledge of now.

    UNKNOWN -> HEARD <-> SUSPECT <-> TALKING        any -> LEFT (it said goodbye), any -> UNKNOWN (forgotten)

HEARD: a valid ad, no connection; may get work (we dial when there is some). TALKING: connected, and something was
heard in the last ``SUSPECT_AFTER_S``. SUSPECT: the connection broke, fell silent, or could not be made; gets no
work; is dialled again, at growing intervals. It is cleared by talking to it, or by an ad that it issued after the
loss: never by an older ad, however often gossip repeats it. LEFT remembers a goodbye, for as long as an ad from
before it could still travel.

A node that dies is SUSPECT within ``SUSPECT_AFTER_S`` of being talked to (at once, if its connection breaks), and
forgotten when its newest ad expires: ``AD_TTL_S + CLOCK_SKEW_S`` after it was issued, in every view, with no message
needed. A connected node without an ad (clock wrong, DHT empty) stays known, but is no candidate.

Ads of one node are ordered by (boot, seq); one that is not newer changes nothing. The table is bounded: the stalest
node without a connection makes room, and a full table of connected nodes takes nobody more. One heap of due times,
corrected when an entry comes up, keeps a tick proportional to what is due and not to what is known.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from meshd.core import limits
from meshd.core.ad import Ad
from meshd.core.ids import NodeId
from meshd.machine import membership_events as ev
from meshd.machine.membership_events import MembershipEffect, MembershipEvent, PeerEvent
from meshd.machine.table import Ignored, Story, StoryEntry, row
from meshd.policy.backoff import backoff_s
from meshd.policy.feasible import Candidate, Facts
from meshd.policy.suspicion import Liveness, silent_since

MAX_NODES: Final = 20_000
PROBE_BASE_S: Final = 0.5
PROBE_MAX_S: Final = 5.0
AD_LIFE_S: Final = limits.AD_TTL_S + limits.CLOCK_SKEW_S

_NEVER = float("inf")


class State(StrEnum):
    """What we know of a node."""

    UNKNOWN = "unknown"
    HEARD = "heard"
    TALKING = "talking"
    SUSPECT = "suspect"
    LEFT = "left"


LIVENESS: Final = {
    State.UNKNOWN: Liveness.GONE,
    State.HEARD: Liveness.ALIVE,
    State.TALKING: Liveness.ALIVE,
    State.SUSPECT: Liveness.SUSPECT,
    State.LEFT: Liveness.GONE,
}

_Effects = list[MembershipEffect]


@dataclass(slots=True)
class Peer:
    """What is known of one node. Times are monotonic seconds, but ``lost_wall_s``, which ads are compared with."""

    node: NodeId
    heard_s: float
    expires_s: float
    state: State = State.UNKNOWN
    ad: Ad | None = None
    version: tuple[int, int] = (-1, -1)
    facts: Facts | None = None
    connected: bool = False
    talked_s: float | None = None
    lost_wall_s: float = float("-inf")
    reason: str = ""
    probes: int = 0
    probe_s: float = _NEVER
    scheduled_s: float | None = None

    def due_s(self) -> float:
        """When time alone changes something here."""
        due_s = _NEVER if self.connected and self.ad is None and self.state is State.TALKING else self.expires_s
        if self.state is State.TALKING and self.talked_s is not None:
            due_s = min(due_s, self.talked_s + limits.SUSPECT_AFTER_S)
        if self.state is State.SUSPECT:
            due_s = min(due_s, self.probe_s)
        return due_s


class Membership:
    """The state machine of node ``me``'s peer table. ``seed`` decides jitter."""

    def __init__(self, me: NodeId, *, seed: int = 0, max_nodes: int = MAX_NODES) -> None:
        self.me = me
        self._seed = seed
        self._max_nodes = max_nodes
        self._peers: dict[NodeId, Peer] = {}
        self._heap: list[tuple[float, NodeId]] = []
        self._wall_offset_s = 0.0
        self._story = Story(4096)

    # -- what others see

    def peers(self) -> tuple[Peer, ...]:
        """Every node that is known and has not left; to look at, not to change."""
        return tuple(p for p in self._peers.values() if p.state is not State.LEFT)

    def peer(self, node: NodeId) -> Peer | None:
        """What is known of ``node``; None when nothing is, or it has left."""
        peer = self._peers.get(node)
        return None if peer is None or peer.state is State.LEFT else peer

    def liveness(self, node: NodeId) -> Liveness:
        """Whether ``node`` may get work, is suspect, or is gone."""
        peer = self._peers.get(node)
        return Liveness.GONE if peer is None else LIVENESS[peer.state]

    def candidate(self, node: NodeId) -> Candidate | None:
        """``node`` as placement sees it; None when it is gone or has no valid ad."""
        peer = self._peers.get(node)
        if peer is None or peer.ad is None or peer.state is State.LEFT:
            return None
        return Candidate(peer.ad, peer.facts, LIVENESS[peer.state])

    def gossip(self, count: int, seed: int) -> tuple[Ad, ...]:
        """At most ``count`` ads to pass on: drawn by ``seed`` from the freshest that are not suspect."""
        alive = (p for p in self._peers.values() if p.ad is not None and LIVENESS[p.state] is Liveness.ALIVE)
        freshest = heapq.nlargest(4 * count, alive, key=lambda p: (p.expires_s, p.node))
        chosen = heapq.nsmallest(count, freshest, key=lambda p: zlib.crc32(f"{seed}/{p.node}".encode()))
        return tuple(p.ad for p in chosen if p.ad is not None)

    def story(self, node: NodeId | None = None) -> tuple[StoryEntry, ...]:
        """How ``node`` (every node, for None) got where it is."""
        return self._story.of(node)

    # -- the machine

    def handle(self, event: MembershipEvent, now_s: float) -> Sequence[MembershipEffect]:
        """What must be done now that ``event`` happened, in order."""
        wall_s = getattr(event, "wall_s", None)
        if wall_s is not None:
            self._wall_offset_s = wall_s - now_s
        if isinstance(event, ev.Tick):
            return self._tick(now_s)
        if event.node == self.me:
            return []
        return self._on_peer(event, now_s)

    def next_deadline(self) -> float | None:
        """When a `Tick` is due; None while time changes nothing. May be early, never late."""
        while self._heap and self._stale(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself; for tests."""
        if len(self._peers) > self._max_nodes:
            raise AssertionError("more nodes than allowed")
        for peer in self._peers.values():
            if peer.state is State.UNKNOWN or (peer.state is State.TALKING and not peer.connected):
                raise AssertionError(f"{peer.node} is kept as {peer.state}, connected {peer.connected}")
            due_s = peer.due_s()
            if due_s < _NEVER and (peer.scheduled_s is None or peer.scheduled_s > due_s):
                raise AssertionError(f"{peer.node} is due at {due_s} and nobody will look")

    def _on_peer(self, event: PeerEvent, now_s: float) -> _Effects:
        node = event.node
        known = self._peers.get(node)
        before = State.UNKNOWN if known is None else known.state
        rule = TABLE[before, type(event)]
        outcome = rule if isinstance(rule, Ignored) else self._apply(rule, known, event, now_s)
        left = self._peers.get(node)
        after = State.UNKNOWN if left is None else left.state
        effects = [] if isinstance(outcome, Ignored) else outcome
        if before is not after or not isinstance(event, ev.AdHeard | ev.HeartbeatAnswered):
            self._story.record(now_s, node, before, event, after, outcome)
        if LIVENESS[before] is not LIVENESS[after]:
            reason = left.reason if left is not None else type(event).__name__.lower()
            effects = [ev.Changed(node, LIVENESS[before], LIVENESS[after], reason), *effects]
        return effects

    def _apply(self, rule: Any, known: Peer | None, event: PeerEvent, now_s: float) -> _Effects | Ignored:
        peer = known or Peer(event.node, now_s, now_s + AD_LIFE_S)
        outcome: _Effects | Ignored = rule(self, peer, event, now_s)
        if peer.state is State.UNKNOWN:
            self._peers.pop(peer.node, None)
            return outcome
        made_room: _Effects = []
        if known is None:
            room = self._make_room()
            if room is None:
                return Ignored("the table is full of connected nodes")
            made_room = room
            self._peers[peer.node] = peer
        self._schedule(peer)
        return outcome if isinstance(outcome, Ignored) else made_room + outcome

    def _make_room(self) -> _Effects | None:
        if len(self._peers) < self._max_nodes:
            return []
        spare = [p for p in self._peers.values() if not p.connected]
        if not spare:
            return None
        stalest = min(spare, key=lambda p: (p.expires_s, p.node))
        del self._peers[stalest.node]
        before = LIVENESS[stalest.state]
        changed = [] if before is Liveness.GONE else [ev.Changed(stalest.node, before, Liveness.GONE, "no room")]
        return [*changed, ev.Updated(stalest.node), ev.Forget(stalest.node, "no room")]

    # -- ads

    def _ad(self, peer: Peer, event: ev.AdHeard, now_s: float) -> _Effects | Ignored:
        ad, wall_s = event.ad, event.wall_s
        left_s = ad.expires_at + limits.CLOCK_SKEW_S - wall_s
        if left_s <= 0 or ad.issued_at > wall_s + limits.CLOCK_SKEW_S:
            return Ignored("expired, or issued in the future")
        if ad.version <= peer.version:
            return Ignored("not newer")
        if peer.state is State.LEFT and ad.issued_at <= peer.lost_wall_s:
            return Ignored("issued before it left")
        peer.ad, peer.version, peer.facts = ad, ad.version, event.facts or peer.facts
        peer.heard_s, peer.expires_s = now_s, now_s + min(left_s, AD_LIFE_S)
        self._clear(peer, event)
        return [ev.Updated(peer.node)]

    def _clear(self, peer: Peer, event: ev.AdHeard) -> None:
        """An ad makes the unknown known, and clears a suspicion that is older than the ad."""
        if peer.state in (State.UNKNOWN, State.LEFT):
            peer.state, peer.reason = State.HEARD, f"heard about ({event.source})"
        elif peer.state is State.SUSPECT and not peer.connected and event.ad.issued_at > peer.lost_wall_s:
            peer.state, peer.reason, peer.probes = State.HEARD, "a newer ad after the loss", 0

    def _expired(self, peer: Peer, event: ev.Expired, now_s: float) -> _Effects:
        if peer.state is State.TALKING:
            peer.ad = None
            return [ev.Updated(peer.node)]
        before, peer.state = peer.state, State.UNKNOWN
        if before is State.LEFT:
            return []
        drop = [ev.Drop(peer.node, "frozen")] if peer.connected else []
        return [ev.Updated(peer.node), ev.Forget(peer.node, "its last ad expired"), *drop]

    # -- connections

    def _up(self, peer: Peer, event: ev.PeerUp, now_s: float) -> _Effects:
        peer.state, peer.connected, peer.facts = State.TALKING, True, event.facts
        peer.talked_s = peer.heard_s = now_s
        peer.probes, peer.reason = 0, "connected"
        return [ev.Updated(peer.node)]

    def _talked(self, peer: Peer, event: ev.HeartbeatAnswered, now_s: float) -> _Effects | Ignored:
        if not peer.connected:
            return Ignored("no connection: a late word")
        peer.talked_s = now_s
        if peer.state is State.TALKING:
            return []
        peer.state, peer.probes, peer.reason = State.TALKING, 0, "answers again"
        return [ev.Updated(peer.node)]

    def _down(self, peer: Peer, event: ev.PeerDown, now_s: float) -> _Effects:
        peer.connected = False
        return self._suspect(peer, "connection lost", now_s)

    def _silent(self, peer: Peer, event: ev.FellSilent, now_s: float) -> _Effects:
        return self._suspect(peer, "silent", now_s)

    def _dial_failed(self, peer: Peer, event: ev.DialFailed, now_s: float) -> _Effects:
        return self._suspect(peer, "cannot be reached", now_s, probe=False)

    def _suspect(self, peer: Peer, reason: str, now_s: float, *, probe: bool = True) -> _Effects:
        """From now on only talking, or an ad issued after now, makes it alive."""
        fresh = peer.state is not State.SUSPECT
        if fresh:
            peer.lost_wall_s = now_s + self._wall_offset_s
            if peer.ad is None:
                peer.expires_s = now_s + AD_LIFE_S
        peer.state, peer.reason = State.SUSPECT, reason
        probes = self._probe(peer, now_s) if probe else []
        if fresh and not probe:
            self._plan_probe(peer, now_s)
        return [ev.Updated(peer.node), *probes]

    def _down_again(self, peer: Peer, event: ev.PeerDown, now_s: float) -> _Effects | Ignored:
        """A connection that had fallen silent is gone now, too."""
        if not peer.connected:
            return Ignored("was not connected")
        return self._down(peer, event, now_s)

    def _plan_probe(self, peer: Peer, now_s: float) -> None:
        peer.probes += 1
        peer.probe_s = now_s + backoff_s(peer.probes, self._seed, base_s=PROBE_BASE_S, max_s=PROBE_MAX_S)

    def _probe(self, peer: Peer, now_s: float) -> _Effects:
        """Dial, unless a silent connection is still there (its heartbeats are the probe) or nobody knows where."""
        self._plan_probe(peer, now_s)
        if peer.connected or peer.ad is None:
            return []
        return [ev.Probe(peer.node, peer.ad.addresses)]

    def _probe_due(self, peer: Peer, event: ev.ProbeDue, now_s: float) -> _Effects:
        return self._probe(peer, now_s)

    def _left(self, peer: Peer, event: ev.PeerLeft, now_s: float) -> _Effects:
        peer.state, peer.connected, peer.ad = State.LEFT, False, None
        peer.lost_wall_s, peer.reason = event.wall_s, "left"
        peer.expires_s = now_s + AD_LIFE_S + limits.CLOCK_SKEW_S
        return [ev.Updated(peer.node), ev.Forget(peer.node, "it left")]

    # -- time

    def _tick(self, now_s: float) -> _Effects:
        effects: _Effects = []
        while self._heap and self._heap[0][0] <= now_s:
            entry = heapq.heappop(self._heap)
            if not self._stale(entry):
                effects += self._due(self._peers[entry[1]], now_s)
        return effects

    def _due(self, peer: Peer, now_s: float) -> _Effects:
        peer.scheduled_s = None
        event = self._due_event(peer, now_s)
        if event is None:
            self._schedule(peer)
            return []
        return self._on_peer(event, now_s)

    def _due_event(self, peer: Peer, now_s: float) -> ev.FellSilent | ev.ProbeDue | ev.Expired | None:
        """What time alone has brought about; the gravest first, the others come up again."""
        if peer.due_s() > now_s:
            return None
        if peer.state is State.TALKING and silent_since(peer.talked_s, now_s):
            return ev.FellSilent(peer.node)
        if now_s >= peer.expires_s:
            return ev.Expired(peer.node)
        return ev.ProbeDue(peer.node)

    def _schedule(self, peer: Peer) -> None:
        due_s = peer.due_s()
        if due_s < _NEVER and (peer.scheduled_s is None or due_s < peer.scheduled_s):
            peer.scheduled_s = due_s
            heapq.heappush(self._heap, (due_s, peer.node))

    def _stale(self, entry: tuple[float, NodeId]) -> bool:
        peer = self._peers.get(entry[1])
        return peer is None or peer.scheduled_s != entry[0]


Rule = Callable[[Membership, Any, Any, float], _Effects | Ignored] | Ignored

_M = Membership
_STRANGER = Ignored("nothing is known of that node")
_UNCONNECTED = Ignored("was not connected")
_CONNECTED = Ignored("there is a connection")
_GOODBYE = Ignored("it has left")
_INTERNAL = Ignored("not timed in this state")

TABLE: Final[dict[tuple[str, type], Rule]] = {
    **row(ev.AdHeard, unknown=_M._ad, heard=_M._ad, talking=_M._ad, suspect=_M._ad, left=_M._ad),
    **row(ev.PeerUp, unknown=_M._up, heard=_M._up, talking=_M._up, suspect=_M._up, left=_M._up),
    **row(ev.PeerDown, unknown=_STRANGER, heard=_UNCONNECTED, talking=_M._down, suspect=_M._down_again, left=_GOODBYE),
    **row(ev.PeerLeft, unknown=_STRANGER, heard=_M._left, talking=_M._left, suspect=_M._left, left=_GOODBYE),
    **row(
        ev.HeartbeatAnswered,
        unknown=_STRANGER,
        heard=_UNCONNECTED,
        talking=_M._talked,
        suspect=_M._talked,
        left=_GOODBYE,
    ),
    **row(
        ev.DialFailed,
        unknown=_STRANGER,
        heard=_M._dial_failed,
        talking=_CONNECTED,
        suspect=_M._dial_failed,
        left=_GOODBYE,
    ),
    **row(ev.FellSilent, unknown=_INTERNAL, heard=_INTERNAL, talking=_M._silent, suspect=_INTERNAL, left=_INTERNAL),
    **row(ev.ProbeDue, unknown=_INTERNAL, heard=_INTERNAL, talking=_INTERNAL, suspect=_M._probe_due, left=_INTERNAL),
    **row(ev.Expired, unknown=_INTERNAL, heard=_M._expired, talking=_M._expired, suspect=_M._expired, left=_M._expired),
}
