"""Load on an OpenAI-compatible completions endpoint, measured at the client: the same code for every server."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

FIRST_TEXT = re.compile(rb'"text":\s*"[^"]')
TIMEOUT_S = 180.0

TOPICS = (
    "The history of the lighthouse begins",
    "A river delta forms where",
    "The printing press changed Europe because",
    "In the mountains, the weather turns",
    "Bread is made from flour, and",
    "The old railway station was built",
    "A violin maker chooses the wood",
    "The market opens at dawn, when",
    "Salt was once as precious as",
    "The expedition crossed the desert by",
    "Bees find their way home by",
    "The first telescopes showed that",
    "A good map shows more than",
    "The harbour was frozen, and",
    "Glass is made by melting",
    "The library kept its rarest books",
)


@dataclass(frozen=True)
class Endpoint:
    """A server: its name in the table, its base URL, its token, and fields that only it understands."""

    name: str
    base_url: str
    token: str = ""
    extra: dict[str, object] = field(default_factory=dict)

    def client(self) -> httpx.Client:
        """A client that keeps its connections."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.Client(base_url=self.base_url, headers=headers, trust_env=False, timeout=TIMEOUT_S)


@dataclass(frozen=True)
class Sample:
    """One answer: time to first text and to the end (s), tokens by the server's own usage, tokens of the prompt that
    it had cached, and when the pieces came (s, of one clock)."""

    first_s: float
    whole_s: float
    tokens: int
    cached_tokens: int
    times_s: list[float]


def complete(client: httpx.Client, endpoint: Endpoint, model: str, prompt: str, max_tokens: int) -> Sample:
    """One greedy streamed completion. Reads raw bytes and parses only the last events, to leave the cores to the
    server."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **endpoint.extra,
    }
    received = bytearray()
    first_s = 0.0
    times_s: list[float] = []
    started = time.perf_counter()
    with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.is_error:
            raise RuntimeError(f"{endpoint.name}: HTTP {answer.status_code}: {answer.read()[:300]!r}")
        for block in answer.iter_raw():
            received += block
            if not first_s and FIRST_TEXT.search(received):
                first_s = time.perf_counter() - started
            if first_s:
                times_s.append(time.perf_counter())
    usage = _usage(bytes(received))
    cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Sample(first_s, time.perf_counter() - started, usage["completion_tokens"], cached_tokens, times_s)


def _usage(received: bytes) -> dict[str, Any]:
    for line in reversed(received.split(b"\n")):
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"the stream ended in an error: {event['error']}")
            if event.get("usage"):
                return dict(event["usage"])
    raise RuntimeError(f"no usage at the end of the stream: {received[-300:]!r}")


def throughput(endpoint: Endpoint, model: str, streams: int, max_tokens: int) -> float:
    """Tokens per second of ``streams`` answers at once, from the first request to the last byte."""
    with endpoint.client() as client, ThreadPoolExecutor(streams) as pool:
        started = time.perf_counter()
        runs = [pool.submit(complete, client, endpoint, model, TOPICS[i % 16], max_tokens) for i in range(streams)]
        samples = [run.result() for run in runs]
        return sum(sample.tokens for sample in samples) / (time.perf_counter() - started)


def times_to_first(endpoints: Sequence[Endpoint], model: str, rounds: int) -> dict[str, list[float]]:
    """Times to first text (ms) by endpoint, one stream at a time, the endpoints taking turns."""
    found: dict[str, list[float]] = {endpoint.name: [] for endpoint in endpoints}
    clients = [endpoint.client() for endpoint in endpoints]
    try:
        for index in range(rounds + 1):
            prompt = f"{TOPICS[index % 16]} ({index})."
            for endpoint, client in zip(endpoints, clients, strict=True):
                sample = complete(client, endpoint, model, prompt, 4)
                if index:  # the first round opens connections
                    found[endpoint.name].append(sample.first_s * 1000)
    finally:
        for client in clients:
            client.close()
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie (nearest rank); nan of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def median(values: Sequence[float]) -> float:
    """The median; nan of nothing."""
    return statistics.median(values) if values else float("nan")
