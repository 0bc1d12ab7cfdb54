"""What the network layer is given: its configuration and the two judges it asks. It decides nothing about trust."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from meshd.core.errors import BadInput
from meshd.core.ids import NodeId
from meshd.core.trust import Certificate


class Gate(Protocol):
    """Decides who is a member. Asked once a handshake, before anything else of the peer is read."""

    def own_proof(self) -> bytes:
        """Our certificate chain, at most ``MAX_CERTIFICATE_BYTES``. Called for every handshake: renewal just works."""

    def check(self, proof: bytes, peer: NodeId) -> Certificate:
        """The certificate that ``proof`` holds for ``peer``. Raises NotMember or ClockWrong with the reason."""


class AdJudge(Protocol):
    """Decides which ads of the directory count."""

    def judge(self, node: NodeId, value: bytes) -> tuple[int, int]:
        """The version (boot, seq) of the ad ``value`` of ``node``. Raises MeshError when it is forged, foreign,
        oversize or expired."""


@dataclass(frozen=True, slots=True)
class NetConfig:
    """How to run the network. ``seed`` (32 bytes) is the node's Ed25519 key; ``listen`` are multiaddrs such as
    ``/ip4/0.0.0.0/tcp/4001`` (port 0: any). Times in seconds.

    ``write_deadline_s``: how long a peer may take nothing before its connection is aborted.
    ``recheck_interval_s``: how often the members at the other ends of live connections are judged anew.
    """

    seed: bytes = field(repr=False)
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    max_connections: int = 512
    max_handshakes: int = 64
    handshake_timeout_s: float = 5.0
    write_deadline_s: float = 5.0
    directory_timeout_s: float = 1.0
    recheck_interval_s: float = 5.0

    def __post_init__(self) -> None:
        if len(self.seed) != 32:
            raise BadInput("a node key has 32 bytes", param="seed")
        if not self.max_connections >= 1 <= self.max_handshakes:
            raise BadInput("limits must be positive", param="max_connections")
