"""What happens to a job at its submitter (events), and what the shell must do about it (effects)."""

from __future__ import annotations

from dataclasses import dataclass

from meshd.core.generation import FinishReason, Opening, Token, Usage
from meshd.core.ids import AttemptId, JobId, ModelDigest, NodeId
from meshd.core.task import DeclineReason, EndReason, LossReason


@dataclass(frozen=True, slots=True)
class Submitted:
    """The app handed the job in."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Answer to `AskPlacement`: offer it to ``worker``."""

    worker: NodeId


@dataclass(frozen=True, slots=True)
class NoCandidate:
    """Answer to `AskPlacement`: nobody can. ``reasons``: the words of `policy.feasible.Infeasible` that occurred.
    ``model_known`` False: no node that we know of, this one included, offers the model. ``queue_full``: as many jobs
    wait for busy workers as may."""

    reasons: tuple[str, ...] = ()
    model_known: bool = True
    queue_full: bool = False


@dataclass(frozen=True, slots=True)
class CandidatesChanged:
    """A node came, came back, or has a free slot again: a job that waits may ask at once."""


@dataclass(frozen=True, slots=True)
class OfferAccepted:
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class OfferDeclined:
    attempt: AttemptId
    reason: DeclineReason
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """The worker's engine took the prompt."""

    attempt: AttemptId
    opening: Opening
    digest: ModelDigest | None


@dataclass(frozen=True, slots=True)
class Tokens:
    attempt: AttemptId
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class Finished:
    """The worker says the answer is complete. ``verified``: its receipt is signed and agrees with what we saw."""

    attempt: AttemptId
    reason: FinishReason
    verified: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The worker says it ended the attempt without a complete answer."""

    attempt: AttemptId
    reason: EndReason
    message: str = ""
    param: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt's stream is gone or was never opened."""

    attempt: AttemptId
    reason: LossReason


@dataclass(frozen=True, slots=True)
class Suspected:
    """Membership suspects ``worker``."""

    worker: NodeId


@dataclass(frozen=True, slots=True)
class StoppedByText:
    """A stop string is complete in the text of the delivered tokens."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The app is gone or took the job back."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Look at the clock."""


SubmissionEvent = (
    Submitted
    | Placed
    | NoCandidate
    | CandidatesChanged
    | OfferAccepted
    | OfferDeclined
    | Started
    | Tokens
    | Heartbeat
    | Finished
    | Ended
    | Lost
    | Suspected
    | StoppedByText
    | Cancelled
    | Tick
)


@dataclass(frozen=True, slots=True)
class AskPlacement:
    """Run `policy.placement.place` and answer `Placed` or `NoCandidate`. ``attempt`` is the next one."""

    attempt: AttemptId
    excluded: frozenset[NodeId]
    digest: ModelDigest | None


@dataclass(frozen=True, slots=True)
class Offer:
    """Offer it to ``worker``, going on after ``delivered``. Answers: `OfferAccepted`, `OfferDeclined`, `Lost`."""

    attempt: AttemptId
    worker: NodeId
    delivered: tuple[Token, ...]
    digest: ModelDigest | None


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Tell ``worker`` to stop and close the stream. Nothing the attempt still says counts."""

    attempt: AttemptId
    worker: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Began:
    """The attempt runs. ``opening`` is that of the first attempt that began: what it implies holds for the answer."""

    attempt: AttemptId
    worker: NodeId
    opening: Opening
    digest: ModelDigest | None


@dataclass(frozen=True, slots=True)
class Reroute:
    """The answer goes on at token ``at_token`` with ``attempt`` on ``worker``; ``lost_worker`` failed by ``reason``."""

    attempt: AttemptId
    worker: NodeId
    lost_worker: NodeId
    at_token: int
    reason: LossReason


@dataclass(frozen=True, slots=True)
class Deliver:
    """New tokens for the app, each index exactly once, in order."""

    attempt: AttemptId
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class ReportFault:
    """``worker`` failed us: count it (`policy.bans`)."""

    attempt: AttemptId
    worker: NodeId
    reason: LossReason


@dataclass(frozen=True, slots=True)
class Complete:
    """The answer is complete: the end. ``verified``: a good receipt came with it. ``worker``: who ended it, None
    when the submitter did without one."""

    job: JobId
    attempt: AttemptId | None
    worker: NodeId | None
    finish: FinishReason
    usage: Usage
    verified: bool


@dataclass(frozen=True, slots=True)
class Fail:
    """The job failed: the end. ``code`` is that of a class in `core.errors`; ``param`` the field at fault, if any."""

    job: JobId
    attempt: AttemptId | None
    code: str
    message: str
    param: str = ""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The app took the job back: the end."""

    job: JobId
    attempt: AttemptId | None


SubmissionEffect = (
    AskPlacement | Offer | CancelAttempt | Began | Reroute | Deliver | ReportFault | Complete | Fail | Withdrawn
)
