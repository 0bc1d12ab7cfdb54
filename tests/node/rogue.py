"""A member with a good certificate and bad manners: it speaks raw frames, whatever they are."""

from __future__ import annotations

import trio

from meshd.core import limits
from meshd.core.ad import Ad, ModelOffer, OfferState
from meshd.core.errors import Truncated
from meshd.core.generation import Generation, Prompt, Token
from meshd.core.ids import AttemptId, JobId, ModelDigest, NodeId, job_id
from meshd.core.job import Constraints, Job, TaskKind
from meshd.core.task import Task, TaskHeader
from meshd.node.ports import FrameStream
from meshd.testing.fakes import FAKE_DIGEST, FAKE_MODEL
from meshd.testing.network import FakeStream
from meshd.wire import frames
from meshd.wire.ads import seal_ad
from meshd.wire.keys import NodeKey
from meshd.wire.protocols import CONTROL, TASK, TaskFrame
from meshd.wire.secretstream import StreamKeys, pull_stream, push_stream
from meshd.wire.task import seal_task
from meshd.wire.trust import issue_certificate
from tests.node.mesh import DELEGATION, ISSUER, WALL_S, Mesh, MeshNode, Setup, certificate_of

KEYS = StreamKeys(up=b"u" * 32, down=b"d" * 32)
JOB = job_id(b"r" * 16)
FAR_S = 1000.0


async def swallow(stream: FrameStream) -> None:
    """Read until there is nothing more."""
    try:
        while True:
            await stream.receive(limits.MAX_TASK_BYTES)
    except Truncated:
        return


class Rogue:
    """Made on a mesh's network; `meet` somebody before talking."""

    def __init__(self, mesh: Mesh, name: str = "rogue") -> None:
        self.key = NodeKey(name.encode().ljust(32, b"."))
        self.node = self.key.node
        certificate = certificate_of(self.key, Setup(name))
        self.proof = issue_certificate(certificate, ISSUER, DELEGATION)
        self.transport = mesh.network.transport(certificate)
        self.transport.serve(CONTROL, swallow)
        self._seq = 0

    async def meet(self, node: MeshNode) -> None:
        """Connect."""
        await self.transport.dial(node.node, node.transport.addresses(), 1.0)

    async def task_stream(self, node: MeshNode) -> FakeStream:
        """A task stream to ``node``."""
        return await self.transport.open_stream(node.node, TASK, 1.0)

    async def control(self, node: MeshNode) -> FakeStream:
        """A control stream to ``node``."""
        return await self.transport.open_stream(node.node, CONTROL, 1.0)

    def ad(self, life_s: float = limits.AD_TTL_S, issued_in_s: float = 0.0) -> bytes:
        """An ad of the fastest worker in the world."""
        self._seq += 1
        now_s = WALL_S + trio.current_time() + issued_in_s
        model = ModelOffer(FAKE_MODEL, FAKE_DIGEST, 4096, 1e6, 1e6, ready=True)
        addresses = self.transport.addresses()
        ad = Ad(
            self.node, 1, self._seq, now_s, now_s + life_s, "rogue", addresses, 4, 2**34, (), (model,), 4, 4,
            OfferState.OPEN, "", "rogue",
        )  # fmt: skip
        return seal_ad(ad, self.key, self.proof)

    def offer(
        self,
        worker: NodeId,
        *,
        number: int = 1,
        job: JobId = JOB,
        life_s: float = 30.0,
        delivered: tuple[Token, ...] = (),
        digest: ModelDigest | None = None,
        model: str = FAKE_MODEL,
    ) -> bytes:
        """A well-formed offer."""
        expires_at = WALL_S + trio.current_time() + life_s
        header = TaskHeader(AttemptId(job, number), self.node, worker, Constraints(), expires_at)
        whole = Job(job, TaskKind.GENERATE, model, Generation(Prompt("rogue")))
        return seal_task(Task(header, whole, digest, delivered), self.key, KEYS)


def up_writer() -> frames.SealedWriter:
    """What a submitter with `KEYS` says."""
    return frames.SealedWriter(push_stream(KEYS.up))


def down_reader() -> frames.SealedReader:
    """What a worker says to a submitter with `KEYS`."""
    return frames.SealedReader(pull_stream(KEYS.down))


async def answer_to(stream: FakeStream, offer: bytes) -> str:
    """The word the offer is answered with: accepted, or the reason it was declined for."""
    await stream.send(TaskFrame.OFFER, offer)
    kind, payload = await stream.receive(limits.MAX_TASK_FRAME_BYTES)
    return "accepted" if kind == TaskFrame.ACCEPT else str(frames.decode_decline(payload).reason)


async def last_word(stream: FakeStream) -> frames.FromWorker:
    """Read an accepted attempt to its end."""
    reader = down_reader()
    while True:
        _, payload = await stream.receive(limits.MAX_TASK_FRAME_BYTES)
        message = reader.open(payload)
        if isinstance(message, frames.Finished | frames.Ended):
            return message
