"""The engine against llama.cpp's own server: the same file, threads, slots and context, taking turns in one run.

Ours is measured through the daemon's HTTP API, so everything that an app pays for is in it. Without llama-server
there is nothing to compare with, and only our figures are told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bench_load import TOPICS, Endpoint, complete, median, percentile, throughput

from meshd.testing.model import MODEL_NAME

STREAMS = (1, 4, 8, 16, 32)
SLOTS = max(STREAMS)
LONG_WORDS = 1_000
"""Of the long prompt: about 2,000 tokens."""

PREFIX_WORDS = 400
RUNNING = 3
"""Answers that run while the long prompt comes."""

SETTLED_TOKENS = 60
"""Tokens of each of them before it does; the first few do not count."""

LEFT_OUT_TOKENS = 10
ANSWER_TOKENS = 2_000
EMBED_TEXTS = 32
WAIT_S = 120.0
POLL_S = 0.01

Add = Callable[[str, float, str, str, "bool | None"], None]


@dataclass
class Rival:
    """A server under test: where it answers, where it embeds, the processes it is made of, and what was measured."""

    endpoint: Endpoint
    embeds: Endpoint
    pids: tuple[int, ...]
    figures: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, value: float) -> None:
        """Take one measurement."""
        self.figures.setdefault(what, []).append(value)


def words(count: int, salt: str) -> str:
    """A text of so many words, another for each ``salt`` from its first word on."""
    return salt + " " + " ".join(f"{n * 7919 % 997}" if n % 3 == 0 else "and" for n in range(count))


def measure(rivals: list[Rival], rounds: int, tokens: int, add: Add) -> None:
    """Everything, the rivals taking turns; medians over the rounds."""
    for round_ in range(rounds + 1):
        for streams in STREAMS:
            for rival in rivals:
                rate = throughput(rival.endpoint, MODEL_NAME, streams, tokens if round_ else 8)
                if round_:
                    rival.note(f"throughput, {streams} streams", rate)
    for round_ in range(rounds):
        for rival in rivals:
            for turn in range(5):
                _first(rival, f"{TOPICS[(5 * round_ + turn) % 16]} ({round_}, {turn}).")
            _stall(rival, f"round {round_}")
            _prefix(rival, f"prefix {round_}")
            _embed(rival, f"text {round_}")
    for rival in rivals:
        rival.note("peak memory", sum(_peak_bytes(pid) for pid in rival.pids) / 1e6)
    report(rivals, add)


def _first(rival: Rival, prompt: str) -> None:
    with rival.endpoint.client() as client:  # a new one: llama-server closes some after a stream
        rival.note("time to first token", complete(client, rival.endpoint, MODEL_NAME, prompt, 4).first_s * 1000)


def _prefix(rival: Rival, salt: str) -> None:
    """Time to first token of a long prompt, then of one that begins alike."""
    prompt = words(PREFIX_WORDS, salt)
    with rival.endpoint.client() as client:
        cold = complete(client, rival.endpoint, MODEL_NAME, prompt + " In short:", 1)
    with rival.endpoint.client() as client:
        warm = complete(client, rival.endpoint, MODEL_NAME, prompt + " The end:", 1)
    rival.note("time to first token, long prompt", cold.first_s * 1000)
    rival.note("time to first token, its beginning cached", warm.first_s * 1000)


def _embed(rival: Rival, salt: str) -> None:
    texts = [f"{salt}: {TOPICS[n % 16]} {n}" for n in range(EMBED_TEXTS)]
    with rival.embeds.client() as client:
        began_s = time.perf_counter()
        answer = client.post("/v1/embeddings", json={"model": MODEL_NAME, "input": texts})
        spent_s = time.perf_counter() - began_s
    if answer.is_error:
        raise RuntimeError(f"{rival.embeds.name}: embeddings: HTTP {answer.status_code}: {answer.text[:300]}")
    rival.note("embeddings", EMBED_TEXTS / spent_s)


class _Reader(threading.Thread):
    """Reads one long answer and keeps when its pieces came; `leave` hangs up."""

    def __init__(self, endpoint: Endpoint, prompt: str) -> None:
        super().__init__(daemon=True)
        self.times_s: list[float] = []
        self._endpoint, self._prompt, self._left = endpoint, prompt, threading.Event()

    def run(self) -> None:
        """The thread's work."""
        body = {"model": MODEL_NAME, "prompt": self._prompt, "max_tokens": ANSWER_TOKENS, "stream": True, "seed": 1}
        with self._endpoint.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
            for _ in answer.iter_raw():
                self.times_s.append(time.perf_counter())
                if self._left.is_set():
                    return

    def leave(self) -> None:
        """Hang up with the next piece."""
        self._left.set()
        self.join(WAIT_S)


@contextmanager
def _reading(endpoint: Endpoint) -> Iterator[list[_Reader]]:
    """Answers that run while in the context, each past its first tokens."""
    readers = [_Reader(endpoint, topic) for topic in TOPICS[:RUNNING]]
    for reader in readers:
        reader.start()
    try:
        deadline_s = time.monotonic() + WAIT_S
        while any(len(reader.times_s) < SETTLED_TOKENS for reader in readers):
            if time.monotonic() > deadline_s or not all(reader.is_alive() for reader in readers):
                raise RuntimeError(f"{endpoint.name}: the answers did not get going")
            time.sleep(POLL_S)
        yield readers
    finally:
        for reader in readers:
            reader.leave()


def _stall(rival: Rival, salt: str) -> None:
    """Gaps between the tokens of running answers: alone, and while a long prompt is computed beside them."""
    with _reading(rival.endpoint) as readers, rival.endpoint.client() as client:
        from_s = time.perf_counter()
        long = complete(client, rival.endpoint, MODEL_NAME, words(LONG_WORDS, salt), 1)
        until_s = from_s + long.first_s
    idle, beside = [], []
    for reader in readers:
        gaps = [(b, b - a) for a, b in pairwise(reader.times_s[LEFT_OUT_TOKENS:])]
        idle += [gap for at_s, gap in gaps if at_s < from_s]
        beside += [gap for at_s, gap in gaps if from_s < at_s < until_s]
    rival.note("gap between tokens, p99", percentile(idle, 0.99) * 1000)
    rival.note("gap beside a 2,000-token prompt, p99", percentile(beside, 0.99) * 1000)
    rival.note("time to first token of that prompt", long.first_s * 1000)


def _peak_bytes(pid: int) -> int:
    """The most memory that the process ever had resident (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} tells no peak")


def report(rivals: list[Rival], add: Add) -> None:
    """Each figure of each rival; ours beside theirs and what is aimed at."""
    ours = {what: median(values) for what, values in rivals[0].figures.items()}
    theirs = {what: median(values) for what, values in rivals[1].figures.items()} if len(rivals) > 1 else {}
    for what, value in ours.items():
        unit = _unit(what)
        add(f"{what}, meshd", value, unit, *_judged(what, value, theirs.get(what), ours))
        if what in theirs:
            add(f"{what}, llama-server", theirs[what], unit, "", None)


def _unit(what: str) -> str:
    if what.startswith("throughput"):
        return "tokens/s"
    return {"embeddings": "texts/s", "peak memory": "MB"}.get(what, "ms")


def _judged(what: str, value: float, theirs: float | None, ours: dict[str, float]) -> tuple[str, bool | None]:
    if what.startswith("gap beside"):
        factor = value / ours["gap between tokens, p99"]
        return f"{factor:.1f}x of the gap alone, aim 3x", factor <= 3
    if theirs is None:
        return "", None
    ratio = value / theirs
    if what.startswith("throughput"):
        return f"{ratio:.2f}x of llama-server's, aim 1.00x", ratio >= 1
    if what == "time to first token":
        return f"llama-server + {value - theirs:.1f} ms, aim + 3 ms", value - theirs <= 3
    if what == "peak memory":
        return f"{ratio:.2f}x of llama-server's, aim 1.15x", ratio <= 1.15
    return f"{ratio:.2f}x of llama-server's", None
