"""The pool's side of one engine process: starts it, speaks with it, watches it, buries it.

Whatever ends the process (crash, kill, hang, memory, cancellation) ends every running generation with EngineFailed,
after the tokens that were received before.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import psutil
import trio

from meshd.core.ad import Ability, Rate
from meshd.core.engine import (
    EngineEvent,
    EngineFinished,
    EngineLimits,
    EngineModel,
    EngineStarted,
    EngineTokens,
    ModelFile,
)
from meshd.core.errors import (
    BadInput,
    BeyondLimits,
    ContextOverflow,
    EngineFailed,
    MeshError,
    ModelInvalid,
    Overloaded,
)
from meshd.core.generation import FinishReason, Opening, Token
from meshd.core.job import Work
from meshd.engine.codec import work_map
from meshd.engine.config import PoolConfig
from meshd.engine.decoding import WINDOW_TOKENS
from meshd.engine.frames import FrameError, Message, Unpacker, pack
from meshd.engine.scores import scored_tokens
from meshd.engine.watchdog import Signs, Watchdog

Progress = Callable[[float], None]
"""Hears how much of a model is loaded (0 to 1)."""

_ACKNOWLEDGE_EVERY_TOKENS: Final = 128
_OUTBOX_MESSAGES: Final = 4096
_READ_BYTES: Final = 256 * 1024
_WATCH_INTERVAL_S: Final = 0.2
_LAST_WORDS_S: Final = 0.3
_MIN_DUTY: Final = 0.005
_ROOM_STEP_BYTES: Final = 16 * 1024 * 1024
_SPIN_COUNT: Final = "10000"
"""How long OpenMP's threads spin at a barrier before they sleep. The default, 30 times as long, burns the owner's
processor while other programs want it: beside them, it halved our own speed, too."""

_LOAD_FAILURES: Final[dict[str, type[MeshError]]] = {e.code: e for e in (ModelInvalid, BeyondLimits)}
_STDERR_LINES: Final = 12
_STDERR_LINE_CHARS: Final = 300


class Events:
    """The events of one generation, in order. One consumer."""

    def __init__(self, process: EngineProcess, id: int) -> None:
        self.id = id
        self.failure: MeshError | None = None
        self._process = process
        # The engine holds a sequence at WINDOW_TOKENS unread tokens; every message but two carries at least one.
        self._send, self._receive = trio.open_memory_channel[EngineEvent](WINDOW_TOKENS + 8)
        self._unacknowledged = 0
        self._first: EngineEvent | None = None

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> EngineEvent:
        """The next event. Raises EngineFailed (or what the engine refused with) after the last one received."""
        if self._first is not None:
            event, self._first = self._first, None
            return event
        try:
            event = await self._receive.receive()
        except trio.EndOfChannel:
            if self.failure is not None:
                raise self.failure from None
            raise StopAsyncIteration from None
        if isinstance(event, EngineTokens):
            self._acknowledge(len(event.tokens))
        return event

    async def admitted(self) -> None:
        """Wait until the engine took the generation in; raises what it refused with."""
        self._first = await self.__anext__()

    def _acknowledge(self, tokens: int) -> None:
        self._unacknowledged += tokens
        if self._unacknowledged >= _ACKNOWLEDGE_EVERY_TOKENS:
            self._process.post(["ack", self.id, self._unacknowledged])
            self._unacknowledged = 0

    def put(self, event: EngineEvent) -> None:
        """Hand on an event. Raises FrameError when the engine sends more than its window allows."""
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            raise FrameError("more tokens than the window allows") from None
        except trio.BrokenResourceError:
            return

    def end(self, failure: MeshError | None = None) -> None:
        """No more events; idempotent, the first failure stands."""
        self.failure = self.failure or failure
        self._send.close()

    def leave(self) -> None:
        """The consumer is gone."""
        self._receive.close()


class EngineProcess:
    """One model in one process. Made and run by the pool."""

    def __init__(self, model: ModelFile, limits: EngineLimits, config: PoolConfig) -> None:
        self.model = model
        self.ready = trio.Event()
        self.gone = trio.Event()
        self.info: EngineModel | None = None
        self.failure: MeshError | None = None
        self.pid: int | None = None
        self.wanted_end = False
        self.fraction = 0.0
        self._config = config
        self._limits = limits
        self._running: dict[int, Events] = {}
        self._next_id = 1
        self._room_bytes = limits.memory_bytes or 0
        self._unanswered: set[int] = set()
        self._waiting: list[Progress] = []
        self._fraction_at_s = trio.current_time()
        self._watchdog = Watchdog(config.hang_after_s, trio.current_time())
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._outbox, self._to_write = trio.open_memory_channel[bytes](_OUTBOX_MESSAGES)
        self._scope = trio.CancelScope()

    @property
    def alive(self) -> bool:
        """Whether generations may be started."""
        return self.info is not None and self.failure is None

    @property
    def slots_free(self) -> int:
        """How many more generations may be started now."""
        return self._config.slots - len(self._running) if self.alive else 0

    def rss_bytes(self) -> int:
        """Resident memory of the process; 0 when it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.pid is not None else 0
        except psutil.Error:
            return 0

    def start(self, work: Work, delivered: Sequence[Token], owner: str = "") -> Events:
        """Ask the engine for a piece of work. Raises Overloaded, BadInput, EngineFailed at once."""
        if not self.alive:
            raise self.failure or EngineFailed("the model is not loaded")
        if any(token.index != place for place, token in enumerate(delivered)):
            raise BadInput("the delivered tokens have a gap", param="delivered")
        if self.slots_free <= 0:
            raise Overloaded("every slot of the engine is in use", retry_after_s=1.0)
        frame = _start_frame(self._next_id, work, delivered, owner)
        events = Events(self, self._next_id)
        self._next_id += 1
        if not self._running:
            self._watchdog.begin(trio.current_time())
        self._running[events.id] = events
        self._unanswered.add(events.id)
        self._queue(frame)
        return events

    def cancel(self, events: Events) -> None:
        """The consumer leaves: free the slot within one decode step. Never raises."""
        events.leave()
        self._unanswered.discard(events.id)
        if self._running.pop(events.id, None) is not None:
            self.post(["cancel", events.id])

    async def loaded(self, progress: Progress | None) -> EngineModel:
        """Wait for the model, telling ``progress``; raises why it cannot be loaded. The last to leave off waiting
        ends the process."""
        listener = progress or (lambda fraction: None)
        self._waiting.append(listener)
        try:
            listener(self.fraction)
            await self.ready.wait()
        finally:
            self._waiting.remove(listener)
            if not self._waiting and not self.ready.is_set():
                self.end("loading was cancelled")
        if self.failure is not None or self.info is None:
            raise self.failure or EngineFailed("the engine did not start")
        return self.info

    def end(self, reason: str) -> None:
        """End the process because nobody wants it any more."""
        self.wanted_end = self.failure is None
        self.fail(EngineFailed(reason))

    def limit(self, limits: EngineLimits) -> None:
        """New threads and duty from the next decode step on."""
        self._watchdog.stretch(_threads(self._limits) / _threads(limits))
        self._limits = limits
        self.post(["limits", _threads(limits), _duty(limits)])

    def room(self, memory_bytes: int) -> None:
        """What this process may have of the owner's memory (0: no bound), told again when it changed enough."""
        if abs(memory_bytes - self._room_bytes) >= _ROOM_STEP_BYTES:
            self._room_bytes = memory_bytes
            self.post(["room", memory_bytes])

    def post(self, message: Message) -> None:
        """Queue a message to the engine; a full queue means that it reads no more: it is given up."""
        self._queue(pack(message))

    def _queue(self, frame: bytes) -> None:
        try:
            self._outbox.send_nowait(frame)
        except trio.WouldBlock:
            self.fail(EngineFailed("the engine takes no messages"))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def fail(self, failure: MeshError) -> None:
        """Give the process up: it is killed and every generation ends with ``failure`` (the first one stands)."""
        self.failure = self.failure or failure
        self._scope.cancel()

    async def run(self) -> None:
        """Live until the process ends or is given up; it is dead and reaped on return, however that comes."""
        try:
            with self._scope:
                await self._live()
        except OSError as error:
            self.failure = self.failure or EngineFailed(f"the engine cannot be started: {error}")
        finally:
            self._bury()

    def _bury(self) -> None:
        self.failure = self.failure or EngineFailed("the engine was stopped")
        self._outbox.close()
        self._to_write.close()
        for events in self._running.values():
            events.end(self.failure)
        self._running.clear()
        self._unanswered.clear()
        self.ready.set()
        self.gone.set()

    async def _live(self) -> None:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", "meshd.engine.child"],
            stdin=-1,
            stdout=-1,
            stderr=-1,
            env={"GOMP_SPINCOUNT": _SPIN_COUNT, **os.environ},
        )
        try:
            self.pid = process.pid
            async with trio.open_nursery() as nursery:
                await self._attend(process, nursery)
                nursery.cancel_scope.cancel()
        finally:
            process.kill()
            self.pid = None
            with trio.CancelScope(shield=True):
                await process.wait()
                for pipe in (process.stdin, process.stdout, process.stderr):
                    if pipe is not None:
                        await trio.aclose_forcefully(pipe)

    async def _attend(self, process: trio.Process, nursery: trio.Nursery) -> None:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise OSError("no pipes")
        deaf = trio.Event()
        nursery.start_soon(self._keep_words, process.stderr, deaf)
        nursery.start_soon(self._write, process.stdin)
        nursery.start_soon(self._watch)
        self.post(["load", self._load_options()])
        problem = await self._read(process.stdout)
        process.kill()
        with trio.move_on_after(_LAST_WORDS_S):
            await deaf.wait()
        if self.failure is None:
            status = await process.wait()
            self.failure = EngineFailed(self._with_words(problem or f"the engine died ({_cause(status)})"))

    def _load_options(self) -> dict[str, Any]:
        return {
            "path": os.fsencode(self.model.path),
            "slots": self._config.slots,
            "context_tokens": self._config.context_tokens,
            "prefill_chunk_tokens": self._config.prefill_chunk_tokens,
            "gpu_layers": self._config.gpu_layers,
            "priority": self._config.priority,
            "nice": self._config.nice,
            "threads": _threads(self._limits),
            "duty": _duty(self._limits),
            "memory_bytes": self._limits.memory_bytes or 0,
        }

    async def _write(self, stdin: trio.abc.SendStream) -> None:
        # A dying engine breaks its pipe here; why it died is learnt from its stdout and its exit status.
        with contextlib.suppress(trio.BrokenResourceError):
            async for frame in self._to_write:
                await stdin.send_all(frame)

    async def _read(self, stdout: trio.abc.ReceiveStream) -> str | None:
        """Take messages until the engine's end; the problem, when it talks nonsense."""
        unpacker = Unpacker()
        try:
            while data := await stdout.receive_some(_READ_BYTES):
                for message in unpacker.feed(data):
                    self._take(message)
        except (FrameError, BadInput, ValueError, TypeError, KeyError) as error:
            return f"the engine wrote nonsense: {error}"
        except trio.BrokenResourceError:
            return None
        return None

    async def _keep_words(self, stderr: trio.abc.ReceiveStream, deaf: trio.Event) -> None:
        rest = ""
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stderr.receive_some(4096):
                *lines, rest = (rest + data.decode("utf-8", "replace")).split("\n")
                self._stderr.extend(line[:_STDERR_LINE_CHARS] for line in lines if line.strip())
                rest = rest[-_STDERR_LINE_CHARS:]
        deaf.set()

    def _with_words(self, reason: str) -> str:
        return "\n".join([reason, *self._stderr])

    async def _watch(self) -> None:
        """Give up an engine that shows no life though it has work."""
        while True:
            await trio.sleep(_WATCH_INTERVAL_S)
            now_s, bound_s = trio.current_time(), self._config.load_timeout_s
            if self.info is None:
                late = now_s - self._fraction_at_s > bound_s
                problem = f"loading made no progress for more than {bound_s:g} s" if late else ""
            elif self._running:
                # A step of a model that only embeds is as long as the text that came.
                patient = bool(self._unanswered) or Ability.GENERATE not in self.info.abilities
                problem = self._watchdog.look(now_s, self._signs, patient=patient)
            else:
                self._watchdog.begin(now_s)
                continue
            if problem:
                self.fail(EngineFailed(self._with_words(f"the engine hangs: {problem}")))

    def _signs(self) -> Signs | None:
        """What the process shows from outside; None when it is gone."""
        try:
            process = psutil.Process(self.pid)
            with process.oneshot():
                times, status = process.cpu_times(), process.status()
        except psutil.Error:
            return None
        return Signs(times.user + times.system, status in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP))

    def _take(self, message: Message) -> None:
        self._watchdog.heard(trio.current_time(), busy=bool(self._running) and not self._unanswered)
        match message:
            case ["tokens", int(id), int(first), list(tokens)]:
                self._put(id, EngineTokens(tuple(Token(first + i, t, p) for i, (t, p) in enumerate(tokens))))
            case ["scored", int(id), int(first), list(tokens)]:
                self._put(id, EngineTokens(scored_tokens(first, tokens)))
            case ["started", int(id), int(prompt_tokens), list(stops), int(cached_tokens), str(syntax)]:
                self._unanswered.discard(id)
                self._put(id, EngineStarted(Opening(prompt_tokens, tuple(stops), cached_tokens, syntax)))
            case ["finished", int(id), str(reason)]:
                self._put(id, EngineFinished(FinishReason(reason)))
                self._end(id, None)
            case ["refused", int(id), str(code), str(text), param]:
                self._end(id, _refusal(code, text, param))
            case ["beat", float(prefill), float(generation), list(rates)]:
                self._rates(prefill, generation, rates)
            case ["loading", float(fraction)]:
                self._progress(fraction)
            case ["loaded", dict(facts)]:
                facts["rates"] = _by_sequences(facts["rates"])
                facts["abilities"] = tuple(Ability(name) for name in facts["abilities"])
                self.info = EngineModel(self.model.name, self.model.digest, slots=self._config.slots, **facts)
                self._watchdog.expect(self._step_s(self.info))
                self.ready.set()
            case ["load_failed", str(code), str(text)]:
                self.failure = _LOAD_FAILURES.get(code, EngineFailed)(self._with_words(text))
            case _:
                raise FrameError(f"unknown message {message[0]!r}")

    def _progress(self, fraction: float) -> None:
        if self.info is None and self.fraction < fraction <= 1:
            self.fraction, self._fraction_at_s = fraction, trio.current_time()
            for listener in self._waiting:
                listener(fraction)

    def _step_s(self, info: EngineModel) -> float:
        """How long the largest step takes by the rates just measured, rests left out."""
        tokens_per_s = info.prefill_tokens_per_s / _duty(self._limits)
        return self._config.prefill_chunk_tokens / tokens_per_s if tokens_per_s > 0 else 0.0

    def _put(self, id: int, event: EngineEvent) -> None:
        if (events := self._running.get(id)) is not None:
            events.put(event)

    def _end(self, id: int, failure: MeshError | None) -> None:
        self._unanswered.discard(id)
        if (events := self._running.pop(id, None)) is not None:
            events.end(failure)

    def _rates(self, prefill: float, generation: float, rates: list[Any]) -> None:
        if self.info is not None and math.isfinite(prefill) and math.isfinite(generation):
            self.info = replace(
                self.info,
                prefill_tokens_per_s=prefill,
                generation_tokens_per_s=generation,
                rates=_by_sequences(rates),
            )


def _start_frame(id: int, work: Work, delivered: Sequence[Token], owner: str) -> bytes:
    try:
        return pack(["start", id, work_map(work), [token.id for token in delivered], owner])
    except (FrameError, UnicodeEncodeError, OverflowError) as error:
        raise BadInput(f"the request cannot be passed on: {error}") from None


def _by_sequences(rates: list[Any]) -> tuple[Rate, ...]:
    return tuple(Rate(int(sequences), float(tokens_per_s)) for sequences, tokens_per_s in rates)


def _threads(limits: EngineLimits) -> int:
    return max(1, limits.threads)


def _duty(limits: EngineLimits) -> float:
    return min(1.0, max(_MIN_DUTY, limits.duty))


def _refusal(code: str, text: str, param: str | None) -> MeshError:
    if code == ContextOverflow.code:
        return ContextOverflow(text, param=param)
    if code == BadInput.code:
        return BadInput(text, param=param)
    if code == Overloaded.code:
        return Overloaded(text, retry_after_s=1.0)
    return BeyondLimits(text) if code == BeyondLimits.code else EngineFailed(text)


def _cause(status: int) -> str:
    if status == -signal.SIGKILL:  # We did not send it: only the system and people do.
        return f"signal {-status}: killed from outside, as by a system without memory"
    return f"signal {-status}" if status < 0 else f"exit status {status}"
