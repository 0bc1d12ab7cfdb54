"""What this node hears of its peers (events), and what the shell must do about it (effects)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meshd.core.ad import Ad
from meshd.core.ids import NodeId
from meshd.policy.feasible import Facts
from meshd.policy.suspicion import Liveness


class Source(StrEnum):
    """Who told us: the node itself on a connection of ours, another member, or the DHT."""

    DIRECT = "direct"
    GOSSIP = "gossip"
    DIRECTORY = "directory"


@dataclass(frozen=True, slots=True)
class AdHeard:
    """A verified ad. ``facts``: from a verified certificate of that node, None when none came along."""

    ad: Ad
    facts: Facts | None
    source: Source
    wall_s: float

    @property
    def node(self) -> NodeId:
        return self.ad.node


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A connection to the node passed the membership check, which proved ``facts``."""

    node: NodeId
    facts: Facts


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The last connection to the node is gone."""

    node: NodeId
    wall_s: float


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """The node said goodbye."""

    node: NodeId
    wall_s: float


@dataclass(frozen=True, slots=True)
class HeartbeatAnswered:
    """The node said something on its connection: any frame counts."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class DialFailed:
    """We tried to connect and could not."""

    node: NodeId
    wall_s: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Look at the clock."""

    wall_s: float


@dataclass(frozen=True, slots=True)
class FellSilent:
    """Made by the machine itself: heartbeats were missed."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class ProbeDue:
    """Made by the machine itself: time to dial again."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Expired:
    """Made by the machine itself: the newest ad is too old."""

    node: NodeId


PeerEvent = AdHeard | PeerUp | PeerDown | PeerLeft | HeartbeatAnswered | DialFailed | FellSilent | ProbeDue | Expired
MembershipEvent = AdHeard | PeerUp | PeerDown | PeerLeft | HeartbeatAnswered | DialFailed | Tick


@dataclass(frozen=True, slots=True)
class Probe:
    """Dial the node (again); answer `PeerUp` or `DialFailed`."""

    node: NodeId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """The node's liveness changed."""

    node: NodeId
    before: Liveness
    after: Liveness
    reason: str


@dataclass(frozen=True, slots=True)
class Updated:
    """What is known of the node changed (ad, facts or liveness): take `Membership.candidate` anew."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing is known of the node any more: drop what belongs to it."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Abort the connection to the node: it is frozen, and must prove itself anew when it wakes."""

    node: NodeId
    reason: str


MembershipEffect = Drop | Probe | Changed | Updated | Forget
