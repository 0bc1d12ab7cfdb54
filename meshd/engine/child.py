"""One model, one process: ``python -m meshd.engine.child``, started by the pool, dead as soon as the pool is.

Messages on stdin: ``load`` (a map), ``start`` (id, work, delivered ids, owner), ``cancel`` (id), ``ack`` (id, tokens),
``limits`` (threads, duty), ``room`` (memory in bytes). On stdout: ``loading`` (how much of the file is in), ``loaded``
(a map), ``load_failed`` (code, text), ``started`` (id, prompt tokens, implied stops, cached tokens, syntax of tool
calls), ``tokens`` (id, first index, [[token, piece]]), ``scored`` (the same, each with its logarithm and [[token,
piece, logarithm]] of the best), ``finished`` (id, reason), ``refused`` (id, code, text, param), ``beat`` (prefill
tokens/s, generation tokens/s, [[answers at once, tokens/s]]).

llama.cpp may print: descriptor 1 is turned to stderr, frames go to a private copy. A reader thread ends the process
when stdin does. (Linux's parent-death signal would fire when the *thread* that started us ends, and trio starts
processes from short-lived threads.)
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from typing import Any, Final, NoReturn

from meshd.core.errors import MeshError
from meshd.engine.codec import work_from
from meshd.engine.decoding import ContextLost, Decoding
from meshd.engine.frames import FrameError, Message, Unpacker, pack
from meshd.engine.llama import LlamaModel, LoadPlan
from meshd.engine.modesty import step_back
from meshd.engine.rates import SIZES, Rates
from meshd.engine.schedule import EXACT_CHUNK_TOKENS, Feed
from meshd.engine.works import Works

_BEAT_INTERVAL_S: Final = 0.25
_PROGRESS_INTERVAL_S: Final = 0.2
_READ_BYTES: Final = 256 * 1024
_INBOX_MESSAGES: Final = 65_536
_MEASURE_PREFILL_TOKENS: Final = 64
_MEASURE_TOKENS: Final = 4
_MEASURE_S: Final = 1.0
"""No further size is measured after so long: a large model on a slow machine learns the rest from its work."""


Inbox = queue.Queue[Message]


class Child:
    """The process's main thread: takes messages, decodes, writes what came of it."""

    def __init__(self, output_fd: int, inbox: Inbox) -> None:
        self._output_fd = output_fd
        self._inbox = inbox
        self._duty = 1.0
        self._threads = 1
        self._rest_until_s = 0.0
        self._beat_at_s = 0.0
        self._progress_at_s = 0.0
        self._rates = Rates()
        self._idle = True

    def run(self) -> None:
        """Load, then serve until stdin ends (the reader thread ends the process)."""
        kind, options = self._inbox.get()
        if kind != "load":
            raise FrameError("the first message must be load")
        try:
            self._load(options)
        except MeshError as error:
            self._write([["load_failed", error.code, error.message]])
            return
        while True:
            self._turn()

    def _load(self, options: dict[str, Any]) -> None:
        step_back(options["priority"], options["nice"])
        self._duty = options["duty"]
        slots, chunk_tokens = options["slots"], options["prefill_chunk_tokens"]
        plan = LoadPlan(
            path=os.fsdecode(options["path"]),
            slots=slots,
            context_tokens=options["context_tokens"],
            batch_tokens=max(2 * slots + chunk_tokens, EXACT_CHUNK_TOKENS, _MEASURE_PREFILL_TOKENS),
            threads=options["threads"],
            gpu_layers=options["gpu_layers"],
            memory_bytes=options["memory_bytes"],
            progress=self._loading,
        )
        self._model = LlamaModel(plan)
        self._works = Works(
            self._model,
            lambda prompts: Decoding(self._model, prompts.prepare, slots=slots, prefill_chunk_tokens=chunk_tokens),
            tell=lambda id: self._inbox.put(["warm", id]),
            max_jobs=slots,
        )
        self._decoding = self._works.decoding
        self._threads = options["threads"]
        self._works.set_threads(self._threads)
        if self._model.generates:
            self._measure(slots)
        self._rates.scale(self._duty)
        self._write([["loaded", self._facts()]])

    def _loading(self, fraction: float) -> None:
        """Tell how far loading is, now and then: llama.cpp calls this for every tensor."""
        if (now_s := time.monotonic()) >= self._progress_at_s:
            self._progress_at_s = now_s + _PROGRESS_INTERVAL_S
            self._write([["loading", fraction]])

    def _facts(self) -> dict[str, Any]:
        return {
            "context_tokens": self._model.context_tokens,
            "has_chat_template": self._works.prompts.has_template,
            "gpu_layers": self._model.gpu_layers,
            "abilities": [str(ability) for ability in self._works.abilities],
            "prefill_tokens_per_s": self._rates.prefill_tokens_per_s,
            "generation_tokens_per_s": self._rates.generation_tokens_per_s,
            "rates": self._rates.by_sequences(),
        }

    def _measure(self, slots: int) -> None:
        """A short run, so that the first ad carries rates of this machine: a prompt, then 1, 2, 4, ... answers."""
        count = min(_MEASURE_PREFILL_TOKENS, self._model.context_tokens - _MEASURE_TOKENS)
        token = self._model.vocab_tokens // 2
        prompt = [Feed(0, 0, 0, (token,) * count, True, False)]
        self._timed(prompt)  # Pays for reading the file in.
        self._model.keep(0, 0)
        self._rates = Rates()
        self._timed(prompt)
        self._model.keep(0, 0)
        ends_s = time.monotonic() + _MEASURE_S
        for size in (size for size in SIZES if size <= slots):
            for at in range(_MEASURE_TOKENS):
                self._timed([Feed(slot, slot, at, (token,), True, False) for slot in range(size)])
            for slot in range(size):
                self._model.keep(slot, 0)
            if time.monotonic() > ends_s:
                return

    def _timed(self, feeds: list[Feed]) -> None:
        began_s = time.monotonic()
        self._model.decode(feeds)
        self._model.logits(sum(len(feed.tokens) for feed in feeds) - 1)
        self._rates.note(feeds, time.monotonic() - began_s)

    def _limit(self, threads: int, duty: float) -> None:
        """The owner's limits from the next step on. What the ads tell follows at once: placement must not send work
        to a machine because of what it could do yesterday, nor spare it."""
        self._model.set_threads(threads)
        self._works.set_threads(threads)
        self._rates.scale(threads * duty / (self._threads * self._duty))
        self._threads, self._duty = threads, duty
        self._rest_until_s = 0.0
        self._beat()

    def _beat(self) -> None:
        rates = self._rates
        self._write([["beat", rates.prefill_tokens_per_s, rates.generation_tokens_per_s, rates.by_sequences()]])

    def _turn(self) -> None:
        self._take_messages(self._patience_s())
        now_s = time.monotonic()
        if self._works.busy and now_s >= self._beat_at_s:
            self._beat_at_s = now_s + _BEAT_INTERVAL_S
            self._beat()
        self._write(self._works.overdue(now_s))
        if now_s < self._rest_until_s:
            return
        feeds = self._decoding.next_step()
        if feeds:
            self._step(feeds)
        self._idle = not self._step_aside() and not feeds

    def _patience_s(self) -> float | None:
        """How long to wait for messages before the next step; None: until one comes."""
        if not self._works.busy:
            return None
        if self._idle:
            return _BEAT_INTERVAL_S
        return min(max(self._rest_until_s - time.monotonic(), 0.0), _BEAT_INTERVAL_S)

    def _step(self, feeds: list[Feed]) -> None:
        began_s = time.monotonic()
        messages = self._decoding.step(feeds)
        spent_s = time.monotonic() - began_s
        rest_s = spent_s * (1 - self._duty) / self._duty
        self._rest_until_s = began_s + spent_s + rest_s
        self._rates.note(feeds, spent_s + rest_s)
        self._decoding.pace.note(feeds, spent_s)
        self._write(messages)

    def _step_aside(self) -> bool:
        """A step of what is not decoding; whether there was anything to do. The owner's share counts it, too."""
        began_s = time.monotonic()
        messages = self._works.step_aside()
        if messages is None:
            return False
        now_s = time.monotonic()
        self._rest_until_s = max(self._rest_until_s, now_s) + (now_s - began_s) * (1 - self._duty) / self._duty
        self._write(messages)
        return True

    def _take_messages(self, timeout_s: float | None) -> None:
        try:
            message = self._inbox.get(timeout=timeout_s) if timeout_s != 0 else self._inbox.get_nowait()
            while True:
                self._take(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _take(self, message: Message) -> None:
        match message:
            case ["start", int(id), dict(request), list(delivered), str(owner)]:
                self._idle = False
                self._write(self._works.start(id, work_from(request), delivered, time.monotonic(), owner))
            case ["warm", int(id)]:
                self._idle = False
                self._write(self._works.warm(id))
            case ["cancel", int(id)]:
                self._works.cancel(id)
            case ["ack", int(id), int(tokens)]:
                self._works.acknowledge(id, tokens)
            case ["limits", int(threads), float(duty)]:
                self._limit(threads, duty)
            case ["room", int(memory_bytes)]:
                self._model.memory_bytes = memory_bytes
            case _:
                raise FrameError(f"unknown message {message[0]!r}")

    def _write(self, messages: list[Message]) -> None:
        data = memoryview(b"".join(pack(message) for message in messages))
        while data:
            data = data[os.write(self._output_fd, data) :]


def _read_stdin(inbox: Inbox) -> NoReturn:
    unpacker = Unpacker()
    try:
        while data := os.read(0, _READ_BYTES):
            for message in unpacker.feed(data):
                inbox.put(message)
    finally:
        os._exit(0)  # The pool is gone; a decode in the main thread must not keep the process.


def main() -> None:
    """The process's entry."""
    output_fd = os.dup(1)
    os.dup2(2, 1)
    inbox: Inbox = queue.Queue(_INBOX_MESSAGES)
    threading.Thread(target=_read_stdin, args=(inbox,), daemon=True).start()
    try:
        Child(output_fd, inbox).run()
    except BrokenPipeError:
        os._exit(0)
    except ContextLost as error:
        sys.exit(f"the context is lost: {error}")


if __name__ == "__main__":
    main()
