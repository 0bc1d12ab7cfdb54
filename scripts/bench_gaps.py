"""The gap that an app sees when its worker is killed, again and again, and whether a token was ever lost or doubled."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import httpx

from meshd.testing.cluster import Cluster, Node, View, running_worker, until
from meshd.testing.model import MODEL_NAME

PROMPT = "The history of the lighthouse begins"
MAX_TOKENS = 80
EXACT_EVERY = 5
"""Every fifth answer is exact: only then can its text be compared with an undisturbed one."""


@dataclass
class Found:
    """What happened over all kills. Gaps are those of answers that were not exact: an exact one replays slowly."""

    gaps_ms: list[float] = field(default_factory=list)
    client_gaps_ms: list[float] = field(default_factory=list)
    unfinished: int = 0
    lost: int = 0
    doubled: int = 0
    exact: int = 0
    different: int = 0


@dataclass
class Seen:
    """One answer as the app read it; ``cut`` is the number of pieces at the kill."""

    pieces: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    job: str = ""
    finish: str | None = None
    tokens: int = 0
    cut: int = 0
    error: str = ""


def measure(cluster: Cluster, model: Path, kills: int, say: Callable[[str], None]) -> Found:
    """Kill the answering worker ``kills`` times, after 10 to 49 tokens."""
    first = cluster.found("one")
    second = cluster.join("two", first)
    app = cluster.join("app", first)
    for node in (first, second):
        cluster.add_model(node, model)
        cluster.share(node)
    cluster.wait_to_meet()
    cluster.wait_for_workers(app, 2)
    wanted = "".join(answer(app, cluster, None, exact=True).pieces)
    found = Found()
    for index in range(kills):
        exact = index % EXACT_EVERY == EXACT_EVERY - 1
        seen = answer(app, cluster, 10 + index * 7 % 40, exact=exact)
        judge(found, seen, app, exact, wanted)
        for node in (first, second):
            if not node.running:
                cluster.up(node)
        cluster.wait_for_workers(app, 2)
        if found.gaps_ms and (index + 1) % 10 == 0:
            say(f"  {index + 1} kills, last gap {found.gaps_ms[-1]:.0f} ms")
    return found


def answer(app: Node, cluster: Cluster, kill_after: int | None, *, exact: bool) -> Seen:
    """Read one answer, killing its worker after ``kill_after`` pieces."""
    body = {
        "model": MODEL_NAME,
        "prompt": PROMPT,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "mesh": {"exact": exact},
    }
    seen = Seen()
    with app.http.stream("POST", "/v1/completions", json=body, timeout=60) as reply:
        seen.job = reply.headers.get("X-Mesh-Job", "")
        try:
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    take(seen, json.loads(line[6:]))
                    if kill_after is not None and not seen.cut and len(seen.pieces) >= kill_after:
                        worker = until(lambda: running_worker(app, seen.job), 2.0, "the job has a worker")
                        cluster.kill(cluster.by_id(worker))
                        seen.cut = len(seen.pieces)
        except httpx.TransportError as error:
            seen.error = str(error)
    return seen


def take(seen: Seen, event: View) -> None:
    """Count one event of the stream in."""
    if "error" in event:
        seen.error = str(event["error"])
    for choice in event.get("choices", ()):
        if choice["text"]:
            seen.pieces.append(choice["text"])
            seen.times.append(time.perf_counter())
        seen.finish = choice["finish_reason"] or seen.finish
    if event.get("usage"):
        seen.tokens = event["usage"]["completion_tokens"]


def judge(found: Found, seen: Seen, app: Node, exact: bool, wanted: str) -> None:
    """What one answer adds to the account."""
    if seen.error or seen.finish is None:
        found.unfinished += 1
        return
    job = next(view for view in app.jobs() if view["id"] == seen.job)
    produced = sum(attempt["tokens"] for attempt in job["attempts"])
    found.lost += max(0, seen.tokens - produced)
    found.doubled += max(0, produced - seen.tokens)
    if exact:
        found.exact += 1
        found.different += "".join(seen.pieces) != wanted
    elif len(job["attempts"]) > 1:
        gap = job["attempts"][1]["gap_ms"]
        found.gaps_ms.append(float(gap) if gap is not None else float("nan"))
        # What was on its way when the worker died still arrives, so the pause is the longest one from there on.
        after = seen.times[seen.cut - 1 :]
        found.client_gaps_ms.append(max(b - a for a, b in pairwise(after)) * 1000)
