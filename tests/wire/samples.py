"""Valid messages of every kind, from fixed keys: what the golden, round-trip and mutation tests share."""

from __future__ import annotations

from meshd.core.ad import Ad, Gpu, ModelOffer, OfferState
from meshd.core.chat import Message
from meshd.core.classes import DataClass, Region
from meshd.core.generation import Generation, Prompt, Sampling, Token
from meshd.core.ids import AttemptId, JobId, ModelDigest
from meshd.core.job import Constraints, Job, TaskKind
from meshd.core.receipt import Receipt
from meshd.core.task import Task, TaskHeader
from meshd.core.trust import Certificate, Delegation, Invite, Organisation
from meshd.wire.keys import NodeKey
from meshd.wire.secretstream import StreamKeys
from meshd.wire.trust import issue_certificate, issue_delegation

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0
ROOT = NodeKey(bytes([1]) * 32)
ISSUER = NodeKey(bytes([2]) * 32)
WORKER = NodeKey(bytes([3]) * 32)
SUBMITTER = NodeKey(bytes([4]) * 32)
STRANGER = NodeKey(bytes([5]) * 32)
JOB = JobId("job_" + "0a" * 16)
DIGEST = ModelDigest("ab" * 32)
KEYS = StreamKeys(up=b"u" * 32, down=b"d" * 32)


def delegation_of(
    max_clearance: DataClass = DataClass.RESTRICTED, begins_s: float = NOW_S - DAY_S, ends_s: float = NOW_S + 90 * DAY_S
) -> Delegation:
    return Delegation(
        org=ROOT.verify_key,
        issuer_key=ISSUER.verify_key,
        max_clearance=max_clearance,
        not_before=begins_s,
        not_after=ends_s,
        serial=1,
    )


def certificate_of(
    key: NodeKey,
    clearance: DataClass = DataClass.CONFIDENTIAL,
    begins_s: float = NOW_S - 60,
    ends_s: float = NOW_S + 7 * DAY_S,
    org: bytes = ROOT.verify_key,
) -> Certificate:
    return Certificate(
        org=org,
        node=key.node,
        name="laptop-7",
        site="berlin",
        region=Region("eu/de/berlin"),
        clearance=clearance,
        labels=("gpu", "desk"),
        roles=("member",),
        not_before=begins_s,
        not_after=ends_s,
        serial=42,
    )


DELEGATION = issue_delegation(delegation_of(), ROOT)


def proof_of(key: NodeKey) -> bytes:
    return issue_certificate(certificate_of(key), ISSUER, DELEGATION)


def ad_of(key: NodeKey = WORKER, models: int = 1, issued_at: float = NOW_S, boot: int = 3, seq: int = 9) -> Ad:
    offers = tuple(ModelOffer(f"gemma-{i}", DIGEST, 8192, 700.5, 80.25, True) for i in range(models))
    return Ad(
        node=key.node,
        boot=boot,
        seq=seq,
        issued_at=issued_at,
        expires_at=issued_at + 10,
        name="laptop-7",
        addresses=("/ip4/10.0.0.7/tcp/4001",),
        cpu_threads=8,
        memory_bytes=16 * 2**30,
        gpus=(Gpu("Accelerator", 8 * 2**30, 7 * 2**30),),
        models=offers,
        slots=4,
        slots_free=3,
        state=OfferState.OPEN,
        reason="",
        software="0.1.0",
    )


def tokens_of(count: int, first: int = 0) -> tuple[Token, ...]:
    return tuple(Token(first + i, 1000 + i, b" t%d" % i) for i in range(count))


def task_of(delivered: int = 0, expires_s: float = NOW_S + 60, kind: TaskKind = TaskKind.GENERATE) -> Task:
    constraints = Constraints(DataClass.CONFIDENTIAL, (Region("eu"),))
    generation = Generation(
        prompt=Prompt(messages=(Message("user", "Wie geht es dir? ✓"),)),
        sampling=Sampling(temperature=0.5, seed=7),
        max_tokens=100,
        stop=("\n\n",),
        exact=True,
    )
    return Task(
        TaskHeader(AttemptId(JOB, 2), SUBMITTER.node, WORKER.node, constraints, expires_s),
        Job(JOB, kind, "gemma-0", None if kind is TaskKind.NOOP else generation, constraints),
        DIGEST if delivered else None,
        tokens_of(delivered),
    )


def receipt_of(worker: NodeKey = WORKER) -> Receipt:
    return Receipt(
        attempt=AttemptId(JOB, 2),
        submitter=SUBMITTER.node,
        worker=worker.node,
        model="gemma-0",
        digest=DIGEST,
        prompt_tokens=12,
        first_index=5,
        tokens=30,
        request_hash=b"r" * 32,
        output_hash=b"o" * 32,
        started_at=NOW_S,
        ended_at=NOW_S + 1.5,
        finish="stop",
        certificate_serial=42,
    )


def invite_of(expires_s: float = NOW_S + DAY_S) -> Invite:
    return Invite(
        org=Organisation("Example Org", ROOT.verify_key),
        issuer_key=ISSUER.verify_key,
        enrol_addresses=("10.0.0.1:4002", "mesh.example:4002"),
        bootstrap=("/ip4/10.0.0.1/tcp/4001/p2p/" + ISSUER.node,),
        id=b"i" * 16,
        secret=b"s" * 32,
        expires_at=expires_s,
    )
