"""The worker's last word on an offer: yes, or the first reason for no. Checked again here, whatever the submitter
believed; what cannot be known for certain is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from meshd.core import limits
from meshd.core.ad import ModelOffer
from meshd.core.ids import ModelDigest, NodeId
from meshd.core.job import TaskKind
from meshd.core.share import Share
from meshd.core.task import DeclineReason, Task, TaskHeader
from meshd.policy.feasible import Facts, Infeasible, Terms, permitted

BUSY_RETRY_S: Final = 0.25
MIN_ENGINE_RETRY_S: Final = 0.25
MAX_ENGINE_RETRY_S: Final = 10.0
"""Nobody is sent away for longer than a job would wait: by then it may be loaded for somebody else."""


@dataclass(frozen=True, slots=True)
class Host:
    """This machine as it is now. ``facts``: its own certificate's, None when it has none that is valid.
    ``resting``: models whose engine failed, and for how many seconds more it is not tried (infinity: their file is
    bad)."""

    facts: Facts | None
    share: Share
    models: tuple[ModelOffer, ...]
    draining: bool = False
    resting: Mapping[ModelDigest, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not, and after how many seconds the same worker may say yes (None: do not wait for it)."""

    reason: DeclineReason
    retry_after_s: float | None = None


def admit(task: Task, host: Host, slots_free: int, *, local: bool) -> ModelDigest | Refusal | None:
    """The digest of the model to use (None for a no-op), or why the offer is declined.

    ``local``: the task comes from an app on this machine. The owner's will (sharing, pause, drain) is about others;
    class, region, model, engine and a free slot are needed all the same (a no-op needs neither of the last three).
    """
    refusal = (None if local else _will(host)) or _law(task, host)
    if refusal is not None:
        return refusal
    digest = _digest(task, host)
    if digest is None or isinstance(digest, Refusal) or slots_free > 0:
        return digest
    return Refusal(DeclineReason.BUSY, BUSY_RETRY_S)


def _will(host: Host) -> Refusal | None:
    if not host.share.enabled:
        return Refusal(DeclineReason.NOT_SHARING)
    if host.share.paused:
        return Refusal(DeclineReason.PAUSED)
    return Refusal(DeclineReason.DRAINING) if host.draining else None


def _law(task: Task, host: Host) -> Refusal | None:
    if task.header.constraints != task.job.constraints:
        return Refusal(DeclineReason.BAD_TASK)
    match permitted(task.job.constraints, host.facts):
        case None:
            return None
        case Infeasible.REGION:
            return Refusal(DeclineReason.REGION)
        case _:
            return Refusal(DeclineReason.CLEARANCE)


def _digest(task: Task, host: Host) -> ModelDigest | Refusal | None:
    if task.job.kind is TaskKind.NOOP:
        return None
    for offer in host.models:
        if offer.name == task.job.model and task.digest in (None, offer.digest):
            barred = Terms.of(offer).forbid(task.job, resumed=bool(task.delivered))
            if barred is not None:
                return Refusal(DeclineReason.CLEARANCE if barred is Infeasible.CLEARANCE else DeclineReason.NO_ABILITY)
            return _rest(host.resting[offer.digest]) if offer.digest in host.resting else offer.digest
    return Refusal(DeclineReason.NO_MODEL)


def _rest(left_s: float) -> Refusal:
    """A model that rests is asked for again when it is tried again; one whose file is bad is as good as none."""
    if math.isinf(left_s):
        return Refusal(DeclineReason.NO_MODEL)
    return Refusal(DeclineReason.ENGINE_UNAVAILABLE, min(max(left_s, MIN_ENGINE_RETRY_S), MAX_ENGINE_RETRY_S))


def addressed(header: TaskHeader, me: NodeId, submitter: NodeId, wall_s: float) -> DeclineReason | None:
    """Why a verified header is not for us, not from the peer who sent it, or not for now; None when it is."""
    if header.worker != me:
        return DeclineReason.WRONG_RECIPIENT
    if header.submitter != submitter:
        return DeclineReason.BAD_TASK
    late = wall_s > header.expires_at + limits.CLOCK_SKEW_S
    early = header.expires_at > wall_s + limits.TASK_TTL_S + limits.CLOCK_SKEW_S
    return DeclineReason.EXPIRED if late or early else None
