"""Every error a caller of meshd can decide on: one class per decision.

Each class carries a stable ``code`` (it travels over HTTP, over the wire and into ``--json`` output) and may
carry a ``hint``: what the person can do about it. Nothing here knows HTTP statuses or exit codes; the floors that
speak those map from the class.
"""

from __future__ import annotations

from typing import ClassVar


class MeshError(Exception):
    """Base of all of meshd's own errors; never raised itself."""

    code: ClassVar[str] = "mesh_error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInput(MeshError):
    """A request is wrong and will stay wrong: the sender must change it. ``param`` names the field."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.param = param


class ContextOverflow(BadInput):
    """The prompt (with what was delivered already) does not fit the model's context."""

    code = "context_length_exceeded"


class UnknownModel(MeshError):
    """No node of the mesh, this one included, offers the model that was asked for."""

    code = "model_not_found"


class NotAuthorised(MeshError):
    """The caller of the local API showed no token, or a wrong one."""

    code = "invalid_api_key"


class NoWorker(MeshError):
    """Every candidate was tried, or none is feasible: the job cannot go on now."""

    code = "mesh_no_worker"


class Overloaded(MeshError):
    """A bound was reached; the same request may pass after ``retry_after_s`` seconds."""

    code = "mesh_overloaded"

    def __init__(self, message: str, *, retry_after_s: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class NotFound(MeshError):
    """The named thing (job, node, file) does not exist here."""

    code = "not_found"


class Unreachable(MeshError):
    """A peer did not answer in time, or refused the connection."""

    code = "unreachable"


class NotMember(MeshError):
    """The other side is not, or not any more, a member of this organisation: never retry."""

    code = "not_member"


class ClockWrong(NotMember):
    """Membership failed because the two clocks disagree: set the clock, then retry."""

    code = "clock_wrong"


class ProtocolViolation(MeshError):
    """The peer sent bytes that no correct peer sends (malformed, oversize, out of order): drop the stream."""

    code = "protocol_violation"


class FrameTooLarge(ProtocolViolation):
    """A frame announced more bytes than its limit; nothing of it was read."""

    code = "frame_too_large"


class Truncated(MeshError):
    """The peer vanished before it said END: whatever came before may be incomplete."""

    code = "truncated"


class BadSignature(ProtocolViolation):
    """A signed thing does not verify under the key it names, or was made for another domain."""

    code = "bad_signature"


class AdExpired(MeshError):
    """An ad is honest but too old to use: ignore it, blame nobody."""

    code = "ad_expired"


class TaskRefused(MeshError):
    """Base of the reasons for which a worker refuses a task at the door."""

    code = "task_refused"


class TaskExpired(TaskRefused):
    """The task's expiry has passed, or lies too far in the future."""

    code = "task_expired"


class TaskReplayed(TaskRefused):
    """This very task was seen before."""

    code = "task_replayed"


class WrongRecipient(TaskRefused):
    """The task was sealed to another worker."""

    code = "wrong_recipient"


class WrongAttempt(TaskRefused):
    """A later attempt of the same job fences this one off."""

    code = "wrong_attempt"


class InviteInvalid(MeshError):
    """The invite is malformed, tampered with, or of another organisation."""

    code = "invite_invalid"


class InviteExpired(InviteInvalid):
    """The invite's time is over: ask for a new one."""

    code = "invite_expired"


class InviteUsed(InviteInvalid):
    """The invite has admitted as many machines as it may: ask for a new one."""

    code = "invite_used"


class ConfigInvalid(MeshError):
    """The configuration has problems; ``problems`` lists all of them, each with its key."""

    code = "config_invalid"

    def __init__(self, problems: tuple[str, ...], *, hint: str = "") -> None:
        super().__init__("; ".join(problems), hint=hint)
        self.problems = problems


class HomeUnusable(MeshError):
    """The node's directory is missing, unreadable, or not private to its owner."""

    code = "home_unusable"


class NotEnrolled(HomeUnusable):
    """This home has no certificate yet: join an organisation first."""

    code = "not_enrolled"


class AlreadyDone(MeshError):
    """The thing exists already; doing it again would destroy something."""

    code = "already_done"


class WrongPassphrase(MeshError):
    """The organisation's root key did not open."""

    code = "wrong_passphrase"


class PortInUse(MeshError):
    """Another program listens on the port that was asked for."""

    code = "port_in_use"


class ModelInvalid(MeshError):
    """The file is not a GGUF, or is a damaged one, or llama.cpp cannot load it."""

    code = "model_invalid"


class BeyondLimits(MeshError):
    """The owner's limits on this machine do not allow it (memory, threads). ``crowded``: they would, if what else runs
    here were ended."""

    code = "beyond_limits"

    def __init__(self, message: str, *, hint: str = "", crowded: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.crowded = crowded


class EngineFailed(MeshError):
    """The engine process died, hung or was killed while it ran an attempt: the attempt is lost, not the job."""

    code = "engine_failed"


class NotRunning(MeshError):
    """No daemon answers for this home."""

    code = "not_running"
