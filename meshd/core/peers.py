"""Members coming and going, as the network layer reports them. Spoken by the net and by the node."""

from __future__ import annotations

from dataclasses import dataclass

from meshd.core.ids import NodeId
from meshd.core.trust import Certificate


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A member's connection passed the membership check. ``outbound``: we dialled."""

    node: NodeId
    certificate: Certificate
    outbound: bool


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The last connection to the peer is gone (a killed process shows here at once)."""

    node: NodeId
