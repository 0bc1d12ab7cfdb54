"""A small organisation for the network's tests: real signatures, no fakes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import base58
import msgpack
import nacl.exceptions
import nacl.signing

from meshd.core import limits
from meshd.core.classes import DataClass, Region
from meshd.core.errors import ClockWrong, NotMember, ProtocolViolation
from meshd.core.ids import NodeId
from meshd.core.trust import Certificate
from meshd.net.config import AdJudge, NetConfig
from meshd.net.frames import Frames
from meshd.net.mesh_net import MeshNet, open_mesh_net

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
ECHO = "/meshd/test/echo"


def node_of(key: bytes) -> NodeId:
    """The node id of an Ed25519 public key."""
    return NodeId(base58.b58encode(bytes.fromhex("002408011220") + key).decode())


def key_of(node: NodeId) -> bytes:
    """The Ed25519 public key in a node id."""
    return base58.b58decode(node)[6:]


@dataclass
class Clock:
    """The time by which something is judged. A test moves it: nothing runs out while a slow machine gets ready."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass(frozen=True)
class Org:
    """An organisation: signs proofs and checks them, by its ``clock``."""

    root: nacl.signing.SigningKey = field(default_factory=lambda: nacl.signing.SigningKey(bytes(32)))
    clock: Callable[[], float] = time.time

    def issue(self, node: NodeId, begins: float = -60.0, ends: float = 3600.0) -> bytes:
        now = time.time()
        return bytes(self.root.sign(msgpack.packb([node, now + begins, now + ends])))

    def check(self, proof: bytes, peer: NodeId) -> Certificate:
        try:
            node, begins, ends = msgpack.unpackb(self.root.verify_key.verify(proof))
        except (nacl.exceptions.BadSignatureError, ValueError):
            raise NotMember("not signed by this organisation") from None
        if node != peer:
            raise NotMember("the certificate is of another node")
        if begins > self.clock() + limits.CLOCK_SKEW_S:
            raise ClockWrong("the certificate begins in the future")
        if ends < self.clock():
            raise NotMember("the certificate has expired")
        return Certificate(
            self.root.verify_key.encode(), peer, "node", "lab", Region("eu"), DataClass.PUBLIC, (), (), begins, ends, 1
        )


@dataclass
class MemberGate:
    """A `Gate`: what this node shows, and whom it takes."""

    org: Org
    proof: bytes

    def own_proof(self) -> bytes:
        return self.proof

    def check(self, proof: bytes, peer: NodeId) -> Certificate:
        return self.org.check(proof, peer)


class SignedAds:
    """An `AdJudge` for ads made by `make_ad`, by its ``clock``."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def judge(self, node: NodeId, value: bytes) -> tuple[int, int]:
        try:
            boot, seq, ends, _ = msgpack.unpackb(nacl.signing.VerifyKey(key_of(node)).verify(value))
        except (nacl.exceptions.BadSignatureError, ValueError):
            raise ProtocolViolation("forged") from None
        if ends < self._clock():
            raise ProtocolViolation("expired")
        return (boot, seq)


def make_ad(seed: bytes, seq: int, ttl_s: float = 60.0, text: str = "") -> bytes:
    """An ad of the node with that seed."""
    return bytes(nacl.signing.SigningKey(seed).sign(msgpack.packb([1, seq, time.time() + ttl_s, text])))


def seed_of(number: int) -> bytes:
    """The seed of the test's node ``number``."""
    return bytes([number % 256, number // 256]) + bytes([7] * 30)


def id_of(number: int) -> NodeId:
    """The node id of the test's node ``number``."""
    return node_of(nacl.signing.SigningKey(seed_of(number)).verify_key.encode())


async def echo(stream: Frames) -> None:
    """Send every frame back until the peer is gone."""
    while True:
        kind, payload = await stream.receive(limits.MAX_TASK_BYTES)
        await stream.send(kind, payload)


def gate_of(number: int, org: Org | None = None) -> MemberGate:
    """The gate of a proper member."""
    org = org or Org()
    return MemberGate(org, org.issue(id_of(number)))


PATIENCE_S = 10.0
"""What a healthy member may take for a handshake or an answer of its directory, when a test does not say otherwise: on
a slow machine all members of a test share one busy process."""


@asynccontextmanager
async def member(
    number: int, gate: MemberGate | None = None, judge: AdJudge | None = None, **config: Any
) -> AsyncIterator[MeshNet]:
    """A running node ``number`` on loopback that serves `ECHO`."""
    patient = {"handshake_timeout_s": PATIENCE_S, "directory_timeout_s": PATIENCE_S}
    settings = NetConfig(**{"seed": seed_of(number), "listen": LOOPBACK} | patient | config)
    async with open_mesh_net(settings, gate or gate_of(number), judge or SignedAds()) as net:
        net.transport.serve(ECHO, echo)
        yield net
