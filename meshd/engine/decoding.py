"""Runs generations step by step on a model: admission, decode, draw, stop. No llama.cpp, no clock, no IO of its own.

``start`` admits a generation or refuses it, ``step`` decodes one batch and says what came of it; both answer with
messages for the pool (see child.py for their list). A generation's slot is free as soon as it finished or was
cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from meshd.core.errors import BadInput, ContextOverflow, EngineFailed, MeshError, Overloaded
from meshd.core.generation import FinishReason, Generation
from meshd.engine.answer import Constraint
from meshd.engine.company import company_matters
from meshd.engine.frames import Message
from meshd.engine.pace import Pace
from meshd.engine.sampling import Draw, Logits
from meshd.engine.schedule import Feed, Line, Schedule
from meshd.engine.scores import Drawn, scored_message, scores
from meshd.engine.slots import Slots

WINDOW_TOKENS: Final = 1024
"""Tokens that may wait for a slow reader before its sequence is held."""

_NO_ROOM: Final = 1
_INVALID_BATCH: Final = -1
_FILLER: Final = -1


class Model(Protocol):
    """What decoding needs of a model; see llama.py."""

    context_tokens: int
    vocab_tokens: int
    rewinds: bool

    def decode(self, feeds: Sequence[Feed]) -> int: ...

    def logits(self, row: int) -> Logits: ...

    def keep(self, slot: int, tokens: int) -> bool: ...

    def copy(self, source: int, target: int) -> None: ...

    def reaches_back(self, slot: int, tokens: int) -> bool: ...

    def untouched(self, slot: int) -> bool: ...

    def piece(self, token: int) -> bytes: ...

    def text(self, token: int) -> bytes: ...

    def ends(self, token: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt as tokens, the stops its template implies, and the form that the answer must have. ``shown``: control
    tokens that are text of this answer. ``tool_syntax``: how the model was told to write calls; empty: it was not."""

    tokens: list[int]
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    shown: Mapping[int, bytes] = field(default_factory=dict)
    tool_syntax: str = ""


class ContextLost(Exception):
    """llama.cpp's context is in an unknown state: only a new process helps."""


@dataclass(slots=True)
class _Run:
    draw: Draw
    stops: tuple[bytes, ...]
    tail_bytes: int
    limit_tokens: int
    produced: int
    acknowledged: int
    constraint: Constraint | None
    shown: Mapping[int, bytes]
    top_logprobs: int | None
    tail: bytes = b""
    slot: int = -1
    slots: Slots | None = None

    def allows(self, token: int, piece: bytes) -> bool:
        """Go on by ``token``, if the answer's form admits it."""
        return self.constraint is None or self.constraint.take(token, piece)

    def take(self, piece: bytes) -> bool:
        """Count in one more token; whether the text now holds a stop string, or has all of its form."""
        text = self.tail + piece
        self.produced += 1
        self.tail = text[-self.tail_bytes :] if self.tail_bytes else b""
        complete = self.constraint is not None and self.constraint.complete
        return complete or any(stop in text for stop in self.stops)


class Decoding:
    """All generations of one model."""

    def __init__(
        self, model: Model, prepare: Callable[[Generation], Prepared], *, slots: int, prefill_chunk_tokens: int
    ) -> None:
        self._model = model
        self._prepare = prepare
        self.pace = Pace(prefill_chunk_tokens)
        self._schedule = Schedule(self.pace.room_tokens)
        self._limit = slots
        shared = Slots(slots, model.reaches_back, model.untouched)
        exact = Slots(slots, model.reaches_back, model.untouched, first=slots, exact=True)
        self._slots = {False: shared, True: exact}
        self._had_exact = False
        self._runs: dict[int, _Run] = {}

    @property
    def busy(self) -> bool:
        """Whether any generation is admitted and unfinished."""
        return bool(self._runs)

    def start(self, id: int, request: Generation, delivered: Sequence[int], owner: str = "") -> list[Message]:
        """Admit a generation that goes on after the ``delivered`` token ids: ``started``, or ``refused``. A
        generation that was complete already also finishes here. Only what the same ``owner`` asked before is kept of
        a prompt: how much of it is cached, and how soon it answers, would tell others what was asked."""
        try:
            prepared = self._prepare(request)
            run = self._admit(id, request, prepared, delivered)
            over = self._replay(run, delivered)
            if over is not None:
                return [_started(id, prepared, 0), ["finished", id, str(over)]]
            return [_started(id, prepared, self._enter(id, request, prepared, delivered, run, owner))]
        except MeshError as error:
            return [refusal(id, error)]

    def _admit(self, id: int, request: Generation, prepared: Prepared, delivered: Sequence[int]) -> _Run:
        context_tokens = self._model.context_tokens
        prompt_tokens = len(prepared.tokens)
        if not prepared.tokens:
            raise BadInput("the prompt is empty", param="messages")
        if prompt_tokens >= context_tokens or prompt_tokens + len(delivered) > context_tokens:
            raise ContextOverflow(
                f"the prompt has {prompt_tokens} tokens and {len(delivered)} were generated; "
                f"this model's context holds {context_tokens}",
                param="messages",
            )
        if any(not 0 <= token < self._model.vocab_tokens for token in delivered):
            raise BadInput("a delivered token is not in this model's vocabulary", param="delivered")
        if any(bias.token >= self._model.vocab_tokens for bias in request.sampling.biases):
            raise BadInput("logit_bias names a token that this model does not have", param="logit_bias")
        if id in self._runs or len(self._runs) >= self._limit:
            raise Overloaded("every slot of the engine is in use", retry_after_s=1.0)
        stops = tuple(s.encode() for s in (*request.stop, *prepared.stop))
        room_tokens = context_tokens - prompt_tokens
        return _Run(
            draw=Draw(request.sampling, delivered),
            stops=stops,
            tail_bytes=max((len(s) for s in stops), default=1) - 1,
            limit_tokens=min(request.max_tokens or room_tokens, room_tokens),
            produced=0,
            acknowledged=len(delivered),
            constraint=prepared.constraint,
            shown=prepared.shown,
            top_logprobs=request.top_logprobs,
        )

    def _replay(self, run: _Run, delivered: Sequence[int]) -> FinishReason | None:
        for token in delivered:
            if self._model.ends(token):
                return FinishReason.STOP
            piece = self._piece(run, token)
            if not run.allows(token, piece):
                raise BadInput("a delivered token breaks the form that the answer must have", param="delivered")
            if run.take(piece):
                return FinishReason.STOP
        return FinishReason.LENGTH if run.produced >= run.limit_tokens else None

    def _enter(
        self,
        id: int,
        request: Generation,
        prepared: Prepared,
        delivered: Sequence[int],
        run: _Run,
        owner: str,
    ) -> int:
        """Let the generation take part; how many tokens of its prompt are in the cache already."""
        tokens, prompt_tokens = [*prepared.tokens, *delivered], len(prepared.tokens)
        if request.exact and not self._had_exact:
            self._schedule.company_matters = company_matters(self._model, self._limit, self._limit)
            self._had_exact = True
        slots = self._slots[request.exact]
        grant = slots.take(tokens, prompt_tokens, owner)
        if grant.source is not None:
            self._model.copy(grant.source, grant.slot)
        kept = grant.kept if self._model.keep(grant.slot, grant.kept) else 0
        line = Line(id, grant.slot, request.exact, prompt_tokens, tokens, decoded=kept, owner=owner)
        run.slot, run.slots = grant.slot, slots
        self._runs[id] = run
        slots.enter(line)
        self._schedule.add(line)
        return min(kept, prompt_tokens)

    def cancel(self, id: int) -> None:
        """Forget the generation; its slot is free now, and holds what was computed. Unknown ids are ignored."""
        run = self._runs.pop(id, None)
        if run is not None and run.slots is not None:
            self._schedule.remove(id)
            run.slots.give(run.slot)

    def acknowledge(self, id: int, tokens: int) -> None:
        """The reader took so many more tokens: a held sequence may go on."""
        if (run := self._runs.get(id)) is not None:
            run.acknowledged += tokens
            self._hold(id, run)

    def _hold(self, id: int, run: _Run) -> None:
        self._schedule.line(id).held = run.produced - run.acknowledged >= WINDOW_TOKENS

    def next_step(self) -> list[Feed]:
        """What the next call of ``step`` should decode; empty when nothing can go on."""
        return self._schedule.next_step()

    def step(self, feeds: list[Feed]) -> list[Message]:
        """Decode ``feeds`` and draw. Raises ContextLost when the context cannot be trusted any more."""
        fillers = self._fillers(feeds)
        fed = sorted([*feeds, *fillers], key=lambda feed: feed.slot)
        status = self._model.decode(fed)
        for filler in fillers:
            self._model.keep(filler.slot, filler.position)
        if status == 0:
            return self._drawn(fed)
        if status not in (_NO_ROOM, _INVALID_BATCH):
            raise ContextLost(f"llama_decode answered {status}")
        # The cache is as before. Alone, each sequence shows whether it was the culprit; the others lose nothing.
        if len(feeds) > 1:
            return [message for feed in feeds for message in self.step([feed])]
        return [self._refuse_room(feeds[0], status)]

    def _fillers(self, feeds: list[Feed]) -> list[Feed]:
        """A token for each idle slot in a gap between busy ones, taken back after the step: it costs less than the
        gap. Any token will do."""
        slots = self._runs[feeds[0].id].slots
        if not self._model.rewinds or slots is None:
            return []
        return [
            Feed(_FILLER, slot, held, (0,), logits=False, complete=False)
            for slot, held in slots.fillers([feed.slot for feed in feeds])
            if held < self._model.context_tokens
        ]

    def _refuse_room(self, feed: Feed, status: int) -> Message:
        run = self._runs[feed.id]
        self.cancel(feed.id)
        if run.slots is not None:
            self._model.keep(run.slot, 0)
            run.slots.clear(run.slot)
        if status == _NO_ROOM:
            return refusal(feed.id, Overloaded("the engine's cache is full", retry_after_s=1.0))
        return refusal(feed.id, EngineFailed("llama.cpp refused the batch"))

    def _drawn(self, feeds: list[Feed]) -> list[Message]:
        messages: list[Message] = []
        row = -1
        for feed in feeds:
            row += len(feed.tokens)
            if feed.id == _FILLER:
                continue
            self._schedule.advance(feed)
            if feed.complete:
                messages += self._draw(feed.id, row)
        return messages

    def _draw(self, id: int, row: int) -> list[Message]:
        run = self._runs[id]
        try:
            drawn = self._drawn_token(run, self._model.logits(row))
        except FloatingPointError as error:
            self.cancel(id)
            return [refusal(id, EngineFailed(str(error)))]
        except BadInput as error:
            self.cancel(id)
            return [refusal(id, error)]
        if drawn is None:
            return [self._finish(id, FinishReason.STOP)]
        messages: list[Message] = [scored_message(id, run.produced, drawn)]
        if run.take(drawn.piece):
            return [*messages, self._finish(id, FinishReason.STOP)]
        if run.produced >= run.limit_tokens:
            return [*messages, self._finish(id, FinishReason.LENGTH)]
        self._schedule.line(id).tokens.append(drawn.token)
        self._hold(id, run)
        return messages

    def _drawn_token(self, run: _Run, logits: Logits) -> Drawn | None:
        """The answer's next token; None when it ends. Raises FloatingPointError when nothing can be drawn, BadInput
        when the answer's form grew beyond its bounds."""
        raw = None if run.top_logprobs is None else logits.copy()
        run.draw.bend(logits)
        if run.constraint is not None:
            run.constraint.narrow(logits)
        while True:
            token = run.draw.pick(logits)
            if self._model.ends(token):
                return None
            piece = self._piece(run, token)
            if run.allows(token, piece):
                break
            logits[token] = -np.inf
        run.draw.note(token)
        score = None if raw is None else scores(raw, token, run.top_logprobs or 0, self._model.text)
        return Drawn(token, piece, score)

    def _piece(self, run: _Run, token: int) -> bytes:
        return run.shown.get(token) or self._model.piece(token)

    def _finish(self, id: int, reason: FinishReason) -> Message:
        self.cancel(id)
        return ["finished", id, str(reason)]


def _started(id: int, prepared: Prepared, cached_tokens: int) -> Message:
    return ["started", id, len(prepared.tokens), list(prepared.stop), cached_tokens, prepared.tool_syntax]


def refusal(id: int, error: MeshError) -> Message:
    """``error`` as a message about one generation."""
    return ["refused", id, error.code, error.message, getattr(error, "param", None)]
