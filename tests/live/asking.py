"""An app for the live tests: asks over plain HTTP and keeps everything that the daemon said, comments included."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from meshd.testing.cluster import Node, View

TINY = "tiny"
PATIENCE_S = 60.0


def body(prompt: str = "Once upon a time", *, max_tokens: int = 200, exact: bool = True, **more: Any) -> View:
    """A greedy completion request; ``mesh`` options beside ``exact`` go into ``mesh``."""
    mesh = {"exact": exact, **more.pop("mesh", {})}
    return {"model": TINY, "prompt": prompt, "temperature": 0, "max_tokens": max_tokens, "mesh": mesh, **more}


class Stream:
    """One streamed answer, read as far as the test wants. A context manager: leaving it hangs up."""

    def __init__(self, node: Node, request: View, path: str = "/v1/completions") -> None:
        self._client = httpx.Client(
            base_url=node.api_url, headers={"Authorization": f"Bearer {node.token}"}, trust_env=False
        )
        wanted = {**request, "stream": True, "stream_options": {"include_usage": True}}
        self._context = self._client.stream("POST", path, json=wanted, timeout=PATIENCE_S)
        self.pieces: list[str] = []
        self.times_s: list[float] = []
        self.comments: list[str] = []
        self.finish: str | None = None
        self.usage: View = {}
        self.mesh: View = {}
        self.error: View = {}
        self.done = False

    def __enter__(self) -> Stream:
        self.response = self._context.__enter__()
        self._lines: Iterator[str] = self.response.iter_lines()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)
        self._client.close()

    @property
    def job(self) -> str:
        """The job's id."""
        return str(self.response.headers["X-Mesh-Job"])

    @property
    def text(self) -> str:
        """Everything that came so far."""
        return "".join(self.pieces)

    @property
    def reroutes(self) -> list[dict[str, str]]:
        """The fields of every reroute comment."""
        said = [c.removeprefix(": mesh rerouted ") for c in self.comments if c.startswith(": mesh rerouted ")]
        return [dict(word.split("=", 1) for word in words.split()) for words in said]

    def read(self, pieces: int | None = None) -> Stream:
        """Read on until there are so many pieces of text; None: to the end of the connection."""
        for line in self._lines:
            self._take(line)
            if pieces is not None and len(self.pieces) >= pieces:
                return self
        assert pieces is None, f"the stream ended after {len(self.pieces)} pieces: {self.error or self.finish}"
        return self

    def _take(self, line: str) -> None:
        if line.startswith(":"):
            self.comments.append(line)
        elif line == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            self._event(json.loads(line.removeprefix("data: ")))

    def _event(self, event: View) -> None:
        self.error = event.get("error", self.error)
        self.usage = event.get("usage") or self.usage
        self.mesh = event.get("mesh") or self.mesh
        for choice in event.get("choices", ()):
            if choice["text"]:
                self.pieces.append(choice["text"])
                self.times_s.append(time.monotonic())
            self.finish = choice["finish_reason"] or self.finish


def ask(node: Node, request: View, path: str = "/v1/completions") -> httpx.Response:
    """A whole answer, or the error."""
    return node.http.post(path, json=request, timeout=PATIENCE_S)


def job_view(node: Node, job: str) -> View:
    """The job as its submitter shows it."""
    return next(view for view in node.jobs() if view["id"] == job and view["role"] == "submitter")
