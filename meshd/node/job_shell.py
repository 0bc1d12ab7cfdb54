"""One job at its submitter: feeds the submission machine and carries out what it decides.

Everything but the attempts' own conversations happens synchronously, so an event and its effects are one step of
the loop and no other event comes in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from meshd.core import errors
from meshd.core.errors import MeshError
from meshd.core.generation import Token, Usage
from meshd.core.ids import AttemptId, NodeId
from meshd.core.job import Job, TaskKind
from meshd.core.receipt import Receipt
from meshd.core.task import LossReason
from meshd.machine import submission_events as on
from meshd.machine.submission import State, Submission
from meshd.machine.table import StoryEntry
from meshd.node.answer import AnswerBuffer
from meshd.node.timer import Alarms
from meshd.node.views import AttemptView, ItemsDelta, JobDone, JobView, Loading, Opened, Rerouted, TextDelta
from meshd.policy.feasible import Candidate, Infeasible, feasible
from meshd.policy.placement import Placement, PlacementView, place
from meshd.policy.prefixes import Prefixes
from meshd.policy.text import TextAssembler

_ERRORS: dict[str, type[MeshError]] = {
    e.code: e for e in (errors.NoWorker, errors.UnknownModel, errors.ContextOverflow, errors.BadInput)
}


RETRY_AFTER_S = 5.0
"""What an app is told when everybody was busy: sooner than that, hardly anything will have changed."""


MAX_PASSED_OVER = 8
"""Workers that older jobs wait for, looked past for one that nobody does: each costs a decision."""


class Attempts(Protocol):
    """What a job needs of those who talk to workers."""

    def begin(self, offer: on.Offer, shell: JobShell) -> None:
        """Start the attempt's conversation; it feeds ``shell`` until it is over."""

    def cancel(self, attempt: AttemptId) -> None:
        """Tell the worker to stop, if the conversation is still going on."""

    def full(self, shell: JobShell) -> frozenset[NodeId]:
        """Workers all of whose free slots were offered jobs of this node a moment ago."""

    def spoken_for(self, shell: JobShell, worker: NodeId) -> bool:
        """Whether an older job of this node waits for such a worker."""

    def queue_full(self) -> bool:
        """Whether no more jobs may begin to wait for busy workers."""


@dataclass(slots=True)
class _AttemptRecord:
    view: AttemptView
    lost_at_s: float | None = None
    receipt: Receipt | None = None
    receipt_id: str = ""


class JobShell:
    """Runs one job to its one end. Create, call `start`, read ``answer``; `cancel` any time."""

    def __init__(
        self,
        job: Job,
        *,
        me: NodeId,
        view: PlacementView,
        attempts: Attempts,
        alarms: Alarms,
        name_of: Callable[[NodeId], str],
        wall: Callable[[], float],
        patience_s: float,
        queue_s: float,
        seed: int,
        prefixes: Prefixes,
    ) -> None:
        self.job = job
        self.answer = AnswerBuffer(job.id)
        self._me = me
        self._machine = Submission(job, seed=seed, patience_s=patience_s, queue_s=queue_s)
        self._view = view
        self._attempts = attempts
        self._name_of = name_of
        self._prefixes = prefixes
        self._wall = wall
        self._alarms = alarms
        self._pending: deque[on.SubmissionEvent] = deque()
        self._feeding = False
        self._assembler = TextAssembler(job.generation.stop if job.generation else ())
        self._records: dict[int, _AttemptRecord] = {}
        self._last_token_at_s: float | None = None
        self._gap_from_s: float | None = None
        self._opened = False
        self._started_at = wall()
        self._ended_at: float | None = None
        self._finish = ""

    def start(self) -> None:
        """Begin."""
        self.feed(on.Submitted())

    def next_deadline(self) -> float | None:
        """When time changes something for this job."""
        return self._machine.next_deadline()

    def wake(self) -> None:
        """That time has come."""
        self.feed(on.Tick())

    def cancel(self) -> None:
        """The app is gone: cancel the job everywhere. Does nothing to a job that is over."""
        self.feed(on.Cancelled())

    def feed(self, event: on.SubmissionEvent) -> None:
        """Let the machine see ``event`` and do what follows; events made meanwhile come after it, in order."""
        self._pending.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._pending:
                event = self._pending.popleft()
                for effect in self._machine.handle(event, trio.current_time()):
                    self._carry_out(effect)
                if isinstance(event, on.Ended | on.Lost):  # a worker that left in good order is no fault, but over
                    self._record(event.attempt, outcome=event.reason)
        finally:
            self._feeding = False
        self._alarms.poke(self)

    def receipt(self, attempt: AttemptId, receipt: Receipt, receipt_id: str) -> None:
        """The worker's receipt of ``attempt`` came and is good."""
        record = self._records[attempt.number]
        record.receipt, record.receipt_id = receipt, receipt_id

    @property
    def waiting(self) -> bool:
        """Whether the job waits for a candidate."""
        return self._machine.state is State.WAITING

    @property
    def queued(self) -> bool:
        """Whether the job waits because everybody who could run it is busy."""
        return self._machine.queued

    def would_take(self, candidate: Candidate) -> bool:
        """Whether the job waits, and would go to ``candidate`` if it had a slot. A no-op needs none."""
        if self.job.kind is TaskKind.NOOP or not self._machine.would_take(candidate.node, trio.current_time()):
            return False
        pinned = self._machine.digest if self._machine.delivered else None
        return feasible(self.job, candidate, pinned) is None

    def story(self) -> tuple[StoryEntry, ...]:
        """How the job got where it is."""
        return self._machine.story()

    # -- effects

    def _carry_out(self, effect: on.SubmissionEffect) -> None:
        match effect:
            case on.AskPlacement():
                self._pending.append(self._place(effect))
            case on.Offer():
                self._offer(effect)
            case on.Deliver():
                self._deliver(effect)
            case on.CancelAttempt():
                self._attempts.cancel(effect.attempt)
                self._record(effect.attempt, outcome=effect.reason)
            case on.Began():
                self._began(effect)
            case on.Reroute():
                self._rerouted(effect)
            case on.ReportFault():
                self._view.bans.fault(effect.worker, LossReason(effect.reason), trio.current_time())
                self._record(effect.attempt, outcome=effect.reason)
            case on.Complete():
                self._complete(effect)
            case on.Fail():
                self._fail(effect)
            case on.Withdrawn():
                self._end("cancelled")

    def _place(self, ask: on.AskPlacement) -> on.SubmissionEvent:
        """Whom to offer the job to: nobody who has no slot left once the offers on their way are answered, nor one
        that an older job waits for."""
        now_s, generation = trio.current_time(), self.job.generation
        warm = self._prefixes.warm(self.job.model, generation.prompt, now_s) if generation is not None else {}
        full = self._attempts.full(self)
        taken: set[NodeId] = set()
        while True:
            placement = place(self._view, self.job, ask.excluded | full | taken, ask.digest, now_s, warm)
            if placement.worker is None or len(taken) >= MAX_PASSED_OVER:
                break
            if not self._attempts.spoken_for(self, placement.worker):
                return on.Placed(placement.worker)
            taken.add(placement.worker)
        reasons = {reason.value for reason in placement.reasons}
        if taken or self._without(full, ask):
            reasons.add(Infeasible.BUSY.value)
        return on.NoCandidate(tuple(sorted(reasons)), self._model_known(placement), self._attempts.queue_full())

    def _without(self, full: frozenset[NodeId], ask: on.AskPlacement) -> bool:
        """Whether one of the ``full`` workers was left out for nothing else."""
        candidates = [self._view.get(node) for node in full - ask.excluded]
        return any(c is not None and feasible(self.job, c, ask.digest) is None for c in candidates)

    def _model_known(self, placement: Placement) -> bool:
        if self.job.kind is TaskKind.NOOP:
            return True
        return any(candidate.ad.model(self.job.model) is not None for candidate in self._view)

    def _offer(self, offer: on.Offer) -> None:
        view = AttemptView(offer.attempt.number, offer.worker, self._name_of(offer.worker), 0, "", None)
        self._records[offer.attempt.number] = _AttemptRecord(view)
        self._attempts.begin(offer, self)

    def _began(self, began: on.Began) -> None:
        if self.job.generation is not None:
            self._prefixes.note(self.job.model, self.job.generation.prompt, began.worker, trio.current_time())
        if self._opened or self._machine.delivered:
            return
        self._opened = True
        own = self.job.generation.stop if self.job.generation else ()
        self._assembler = TextAssembler((*own, *began.opening.stops))
        self.answer.write(Opened(began.opening))

    def loading(self, attempt: AttemptId, fraction: float) -> None:
        """The worker of ``attempt`` loads the model for it: a sign of life, and worth telling who waits."""
        self.feed(on.Heartbeat(attempt))
        if attempt == self._machine.attempt and self._machine.worker is not None:
            self.answer.write(Loading(self._name_of(self._machine.worker), fraction))

    def _deliver(self, deliver: on.Deliver) -> None:
        now_s = trio.current_time()
        record = self._records[deliver.attempt.number]
        gap_ms = record.view.gap_ms
        if self._gap_from_s is not None:
            gap_ms, self._gap_from_s = (now_s - self._gap_from_s) * 1000, None
        record.view = replace(record.view, tokens=record.view.tokens + len(deliver.tokens), gap_ms=gap_ms)
        self._last_token_at_s = now_s
        self._show(deliver.tokens)

    def _show(self, tokens: Sequence[Token]) -> None:
        if self.job.generation is None:
            self.answer.write(ItemsDelta(tuple(tokens)))
            return
        text = "".join([self._assembler.feed(token.piece) for token in tokens])
        scored = () if self.job.generation.top_logprobs is None else tuple(tokens)
        self.answer.write(TextDelta(text, len(tokens), scored))
        if self._assembler.stopped:
            self._pending.append(on.StoppedByText())

    def _rerouted(self, effect: on.Reroute) -> None:
        if self._gap_from_s is None:
            self._gap_from_s = self._last_token_at_s
        worker_name = self._name_of(effect.worker)
        self.answer.write(
            Rerouted(effect.attempt.number, effect.worker, worker_name, effect.at_token, str(effect.reason))
        )

    def _complete(self, complete: on.Complete) -> None:
        rest = self._assembler.flush()
        if rest:
            self.answer.write(TextDelta(rest, 0))
        record = self._records.get(complete.attempt.number) if complete.attempt else None
        receipt, receipt_id = (record.receipt, record.receipt_id) if record else (None, "")
        self.answer.write(JobDone(complete.finish, _told_late(complete.usage, receipt), receipt, receipt_id))
        if complete.worker is not None and complete.verified:
            self._view.bans.success(complete.worker)
        if complete.attempt is not None:
            self._record(complete.attempt, outcome=str(complete.finish))
        self._end(str(complete.finish))

    def _fail(self, fail: on.Fail) -> None:
        kind = _ERRORS.get(fail.code, errors.NoWorker)
        if fail.code == errors.Overloaded.code:
            hint = "send it again later, or see `mesh nodes` for what is busy"
            self.answer.fail(errors.Overloaded(fail.message, retry_after_s=RETRY_AFTER_S, hint=hint))
        elif issubclass(kind, errors.BadInput):
            self.answer.fail(kind(fail.message, param=fail.param or None, hint=_hint(kind)))
        else:
            self.answer.fail(kind(fail.message, hint=_hint(kind)))
        self._end(fail.code)

    def _end(self, finish: str) -> None:
        self._finish = finish
        self._ended_at = self._wall()
        self._alarms.forget(self)

    def _record(self, attempt: AttemptId, *, outcome: str) -> None:
        record = self._records.get(attempt.number)
        if record is not None and not record.view.outcome:
            record.view = replace(record.view, outcome=str(outcome))

    # -- for people

    def declined(self, attempt: AttemptId, reason: str) -> None:
        """Note why the worker said no."""
        self._record(attempt, outcome=f"declined: {reason}")

    def view(self) -> JobView:
        """The job as `mesh jobs` shows it."""
        usage: Usage = self._machine.usage
        attempts: Sequence[AttemptView] = [r.view for r in self._records.values()]
        return JobView(
            id=self.job.id,
            role="submitter",
            kind=self.job.kind.value,
            model=self.job.model,
            state=self._machine.state.value,
            submitter=self._me,
            attempts=tuple(attempts),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            started_at=self._started_at,
            ended_at=self._ended_at,
            finish=self._finish,
        )


def _told_late(usage: Usage, receipt: Receipt | None) -> Usage:
    """The usage, with the prompt's tokens as the receipt has them where the engine knew them only at the end. The
    receipt of a later attempt counts what was delivered before as prompt, too, and so tells nothing."""
    if usage.prompt_tokens or receipt is None or receipt.first_index:
        return usage
    return replace(usage, prompt_tokens=receipt.prompt_tokens)


def _hint(kind: type[MeshError]) -> str:
    if kind is errors.NoWorker:
        return "see `mesh nodes` for who is there and why they take nothing"
    if kind is errors.UnknownModel:
        return "GET /v1/models, or `mesh model list`, says which there are"
    return ""
