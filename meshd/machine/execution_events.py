"""What happens to attempts at their worker (events), and what the shell must do about it (effects).

An attempt is named by its submitter and its `AttemptId`: job ids are the submitter's own, so that no member can
fence off or cancel another's work by using its job's id.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshd.core.generation import FinishReason, Opening, Token
from meshd.core.ids import AttemptId, ModelDigest, NodeId
from meshd.core.job import TaskKind
from meshd.core.task import DeclineReason, EndReason, Task
from meshd.policy.admission import Host


@dataclass(frozen=True, slots=True)
class OfferReceived:
    """A verified, opened task from ``submitter``. ``local``: from an app on this machine, which has no lease."""

    submitter: NodeId
    task: Task
    host: Host
    wall_s: float
    local: bool = False

    @property
    def attempt(self) -> AttemptId:
        return self.task.header.attempt


@dataclass(frozen=True, slots=True)
class OfferRefused:
    """An offer from ``submitter`` that did not pass the wire's checks."""

    submitter: NodeId
    attempt: AttemptId
    reason: DeclineReason


@dataclass(frozen=True, slots=True)
class Renewed:
    """Any frame from the submitter about the attempt."""

    submitter: NodeId
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class CancelReceived:
    """The submitter does not want the attempt any more."""

    submitter: NodeId
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class StreamLost:
    """The attempt's stream is gone: nobody reads what it would say."""

    submitter: NodeId
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """The connection to the submitter is gone, and every stream with it."""

    submitter: NodeId


@dataclass(frozen=True, slots=True)
class EngineLoads:
    """The engine loads the model for this attempt: so much of it is there (0 to 1)."""

    submitter: NodeId
    attempt: AttemptId
    fraction: float


@dataclass(frozen=True, slots=True)
class EngineBegan:
    """The engine took the prompt."""

    submitter: NodeId
    attempt: AttemptId
    opening: Opening


@dataclass(frozen=True, slots=True)
class EngineProduced:
    """Tokens from the engine, in order, going on after what was delivered."""

    submitter: NodeId
    attempt: AttemptId
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class EngineEnded:
    """The engine completed the generation. ``prompt_tokens``: where it did not know them at the start."""

    submitter: NodeId
    attempt: AttemptId
    reason: FinishReason
    prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EngineBroke:
    """The engine ended the generation otherwise: ``ENGINE_FAILED``, ``BAD_INPUT`` or ``CONTEXT_OVERFLOW``."""

    submitter: NodeId
    attempt: AttemptId
    reason: EndReason
    message: str = ""
    param: str = ""


@dataclass(frozen=True, slots=True)
class EngineFreed:
    """The engine has let go of the attempt's sequence. Follows every `StartEngine` exactly once, at the very end."""

    submitter: NodeId
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing new from others; end at ``deadline_s`` (monotonic) what still runs for them."""

    deadline_s: float


@dataclass(frozen=True, slots=True)
class Undrain:
    """Take work again."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Look at the clock."""


RunEvent = (
    OfferReceived
    | OfferRefused
    | Renewed
    | CancelReceived
    | StreamLost
    | EngineLoads
    | EngineBegan
    | EngineProduced
    | EngineEnded
    | EngineBroke
    | EngineFreed
)
ExecutionEvent = RunEvent | ConnectionLost | Drain | Undrain | Tick


@dataclass(frozen=True, slots=True)
class ReceiptFacts:
    """What a receipt says about one attempt. ``started_s``/``ended_s`` are monotonic; ``output``: the ids of the
    tokens produced, 4 bytes each, big endian. ``finish``: the finish or end reason."""

    submitter: NodeId
    attempt: AttemptId
    model: str
    digest: ModelDigest | None
    prompt_tokens: int
    first_index: int
    tokens: int
    output: bytes
    started_s: float
    ended_s: float
    finish: str
    kind: TaskKind


@dataclass(frozen=True, slots=True)
class Accept:
    submitter: NodeId
    attempt: AttemptId
    digest: ModelDigest | None


@dataclass(frozen=True, slots=True)
class Decline:
    submitter: NodeId
    attempt: AttemptId
    reason: DeclineReason
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class StartEngine:
    """Run the generation of ``task``; answer with the Engine events, `EngineFreed` last."""

    submitter: NodeId
    attempt: AttemptId
    task: Task
    digest: ModelDigest


@dataclass(frozen=True, slots=True)
class StopEngine:
    """Leave the generation now. `EngineFreed` follows; whatever else the engine still says is ignored."""

    submitter: NodeId
    attempt: AttemptId
    reason: EndReason


@dataclass(frozen=True, slots=True)
class SendLoading:
    submitter: NodeId
    attempt: AttemptId
    fraction: float


@dataclass(frozen=True, slots=True)
class SendStarted:
    submitter: NodeId
    attempt: AttemptId
    opening: Opening
    digest: ModelDigest | None


@dataclass(frozen=True, slots=True)
class SendTokens:
    submitter: NodeId
    attempt: AttemptId
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    submitter: NodeId
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class SendFinished:
    """The last frame of a complete answer, with the receipt made of ``receipt``."""

    submitter: NodeId
    attempt: AttemptId
    reason: FinishReason
    receipt: ReceiptFacts


@dataclass(frozen=True, slots=True)
class SendEnded:
    """The last frame of an attempt that ended otherwise, with its receipt."""

    submitter: NodeId
    attempt: AttemptId
    reason: EndReason
    message: str
    receipt: ReceiptFacts
    param: str = ""


@dataclass(frozen=True, slots=True)
class KeepReceipt:
    """The attempt ended and nobody is there to be told; the ledger keeps its receipt."""

    submitter: NodeId
    attempt: AttemptId
    receipt: ReceiptFacts


@dataclass(frozen=True, slots=True)
class Violation:
    """The local engine broke its contract (a gap, tokens before it began): the attempt ends as engine_failed."""

    submitter: NodeId
    attempt: AttemptId
    message: str


@dataclass(frozen=True, slots=True)
class Drained:
    """Draining, and nothing runs for others any more."""


ExecutionEffect = (
    Accept
    | Decline
    | StartEngine
    | StopEngine
    | SendLoading
    | SendStarted
    | SendTokens
    | SendHeartbeat
    | SendFinished
    | SendEnded
    | KeepReceipt
    | Violation
    | Drained
)
