"""A task: one attempt of a job on its way to one worker, and the words both ends use about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meshd.core.errors import BadInput
from meshd.core.generation import Token
from meshd.core.ids import AttemptId, ModelDigest, NodeId
from meshd.core.job import Constraints, Job


@dataclass(frozen=True, slots=True)
class TaskHeader:
    """What a worker may know before it opens the body. Signed by ``submitter``. ``expires_at`` is wall time (s)."""

    attempt: AttemptId
    submitter: NodeId
    worker: NodeId
    constraints: Constraints
    expires_at: float
    policy_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """The opened task. ``delivered``: tokens the app has already, to go on after. ``digest`` pins the model file
    once tokens were delivered (None: any file of that name)."""

    header: TaskHeader
    job: Job
    digest: ModelDigest | None = None
    delivered: tuple[Token, ...] = ()

    def __post_init__(self) -> None:
        if self.header.attempt.job != self.job.id:
            raise BadInput("header and body name different jobs", param="job")
        if self.delivered and self.digest is None:
            raise BadInput("a resumed task must pin the model", param="digest")
        if any(t.index != i for i, t in enumerate(self.delivered)):
            raise BadInput("delivered tokens must be numbered from 0 without a gap", param="delivered")


class DeclineReason(StrEnum):
    """Why a worker says no. Which of them are worth a retry on the same worker: ``policy.backoff``."""

    NOT_SHARING = "not_sharing"
    PAUSED = "paused"
    DRAINING = "draining"
    BUSY = "busy"
    NO_MODEL = "no_model"
    NO_ABILITY = "no_ability"
    CLEARANCE = "clearance"
    REGION = "region"
    BEYOND_LIMITS = "beyond_limits"
    EXPIRED = "task_expired"
    REPLAYED = "task_replayed"
    WRONG_RECIPIENT = "wrong_recipient"
    WRONG_ATTEMPT = "wrong_attempt"
    BAD_TASK = "bad_task"
    ENGINE_UNAVAILABLE = "engine_unavailable"


class EndReason(StrEnum):
    """How a worker's attempt ended without a complete answer."""

    ENGINE_FAILED = "engine_failed"
    DRAINING = "draining"
    CANCELLED = "cancelled"
    LEASE_LAPSED = "lease_lapsed"
    BAD_INPUT = "bad_input"
    CONTEXT_OVERFLOW = "context_length_exceeded"
    BUSY = "busy"


class LossReason(StrEnum):
    """Why a submitter gave an attempt up."""

    UNREACHABLE = "unreachable"
    CONNECTION_LOST = "connection_lost"
    SILENT = "silent"
    DECLINED = "declined"
    ENGINE_FAILED = "engine_failed"
    DRAINING = "draining"
    LEASE_LAPSED = "lease_lapsed"
    PROTOCOL = "protocol_violation"
