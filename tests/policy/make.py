"""Makes the things that policy, machine and world tests talk about."""

from __future__ import annotations

from typing import Any

from meshd.core.ad import Ad, ModelOffer, OfferState
from meshd.core.classes import DataClass, Region
from meshd.core.generation import Generation, Prompt, Token
from meshd.core.ids import JobId, ModelDigest, NodeId
from meshd.core.job import Constraints, Embedding, Job, TaskKind, Tokenization
from meshd.policy.feasible import Candidate, Facts
from meshd.policy.suspicion import Liveness

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
DIGEST = ModelDigest("ab" * 32)
OTHER_DIGEST = ModelDigest("cd" * 32)
MODEL = "tiny"


def node(number: int) -> NodeId:
    """The node with that number: 1 to 44 digits of base58."""
    digits = ""
    for _ in range(44):
        number, digit = divmod(number, 58)
        digits = _ALPHABET[digit] + digits
    return NodeId("12D3KooW" + digits)


def job_id(number: int = 1) -> JobId:
    return JobId(f"job_{number:032x}")


def token(index: int, piece: bytes = b"x") -> Token:
    return Token(index, 100 + index, piece)


def tokens(first: int, count: int) -> tuple[Token, ...]:
    return tuple(token(i) for i in range(first, first + count))


def job(
    number: int = 1,
    *,
    kind: TaskKind = TaskKind.GENERATE,
    model: str = MODEL,
    text: str = "Once upon a time",
    data_class: DataClass = DataClass.INTERNAL,
    regions: tuple[str, ...] = (),
    **generation: Any,
) -> Job:
    prompt = Prompt(text=text)
    return Job(
        job_id(number),
        kind,
        model,
        Generation(prompt, **generation) if kind is TaskKind.GENERATE else None,
        Constraints(data_class, tuple(Region(r) for r in regions)),
        embedding=Embedding((prompt,)) if kind is TaskKind.EMBED else None,
        tokenization=Tokenization(prompt) if kind is TaskKind.TOKENIZE else None,
    )


def offer(name: str = MODEL, digest: ModelDigest = DIGEST, rate: float = 50.0, ready: bool = True) -> ModelOffer:
    return ModelOffer(name, digest, 4096, rate * 10, rate, ready)


def ad(
    number: int = 1,
    *,
    models: tuple[ModelOffer, ...] | None = None,
    slots: int = 4,
    slots_free: int = 4,
    state: OfferState = OfferState.OPEN,
    boot: int = 1,
    seq: int = 1,
    issued_at: float = 1_000_000.0,
    ttl_s: float = 10.0,
) -> Ad:
    return Ad(
        node=node(number),
        boot=boot,
        seq=seq,
        issued_at=issued_at,
        expires_at=issued_at + ttl_s,
        name=f"n{number}",
        addresses=("/ip4/127.0.0.1/tcp/4001",),
        cpu_threads=2,
        memory_bytes=2**33,
        gpus=(),
        models=(offer(),) if models is None else models,
        slots=slots,
        slots_free=slots_free,
        state=state,
        reason="",
        software="test",
    )


FACTS = Facts(Region("eu/de/berlin"), DataClass.CONFIDENTIAL)


def candidate(
    number: int = 1,
    *,
    facts: Facts | None = FACTS,
    liveness: Liveness = Liveness.ALIVE,
    local: bool = False,
    **of_ad: Any,
) -> Candidate:
    return Candidate(ad(number, **of_ad), facts, liveness, local)
