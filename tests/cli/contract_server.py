"""A small real HTTP server that plays the daemon's side of the contract, and a home that points to it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.cli import views

TOKEN = "mesh-test-token"
Route = Callable[[Any], tuple[int, Any]]


def chunk(text: str | None = None, **more: Any) -> str:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": more.pop("finish", None)}
    return "data: " + json.dumps({"choices": [choice], **more})


GOOD_STREAM = (
    ": mesh waiting",
    chunk("The Rhine, "),
    ": mesh rerouted attempt=2 worker=ceres%20two at_token=34 reason=lost%1B",
    chunk("the Elbe."),
    chunk(None, finish="stop"),
    "data: " + json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}),
    "data: [DONE]",
)
NO_WORKER = {
    "message": "no worker is left\nfor this job",
    "type": "server_error",
    "param": None,
    "code": "mesh_no_worker",
}
BROKEN_STREAM = (chunk("The Rh"), "data: " + json.dumps({"error": {**NO_WORKER, "hint": "mesh nodes shows why"}}))
CUT_STREAM = (chunk("The Rh"),)


class Daemon:
    """What the server answers, and what it was asked. ``stream`` is what a generation streams."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.stream: tuple[str, ...] = GOOD_STREAM
        self.url = ""
        self.stopped = threading.Event()
        self.left = threading.Event()
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {
            ("GET", "/healthz"): (200, {"ok": True}),
            ("GET", "/mesh/v1/status"): (200, views.plain(views.status())),
            ("GET", "/mesh/v1/nodes"): (200, {"nodes": [views.plain(views.node("boreas"))]}),
            ("GET", "/mesh/v1/jobs"): (200, {"jobs": [views.plain(views.job()), views.plain(views.done_job())]}),
            ("GET", "/mesh/v1/models"): (
                200,
                {
                    "models": [
                        {
                            "name": "gemma3-270m",
                            "digest": views.DIGEST,
                            "context_tokens": 32768,
                            "nodes": ["atlas", "boreas"],
                            "local": True,
                        }
                    ]
                },
            ),
            ("POST", "/mesh/v1/models"): (200, views.plain(views.model())),
            ("POST", "/mesh/v1/invites"): (200, {"invite": "mesh1-secret"}),
            ("POST", "/mesh/v1/noop"): (200, {"ms": 2.13}),
            ("POST", "/mesh/v1/shutdown"): (200, {}),
            ("DELETE", "/mesh/v1/models/org/gemma"): (200, {}),
            ("GET", "/v1/models"): (200, {"object": "list", "data": [{"id": "gemma3-270m"}, {"id": "qwen3-4b"}]}),
            **{
                ("POST", f"/mesh/v1/{verb}"): (200, views.plain(views.SHARE))
                for verb in ("share", "unshare", "pause", "resume", "drain")
            },
        }

    def refuse(self, method: str, path: str, status: int, code: str, message: str, hint: str = "") -> None:
        self.answers[method, path] = (status, {"error": {"message": message, "code": code, "hint": hint}})


class _Handler(BaseHTTPRequestHandler):
    daemon: Daemon

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(size)
        body = json.loads(raw) if raw else None
        self.daemon.asked.append((self.command, self.path, body))
        key = (self.command, self.path)
        if self.path == "/mesh/v1/shutdown":
            self.daemon.stopped.set()
        if self.path != "/healthz" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json(401, {"error": {"message": "wrong token", "code": "invalid_api_key"}})
        elif self.path in ("/v1/chat/completions", "/v1/completions") and key not in self.daemon.answers:
            self._stream()
        else:
            self._json(
                *self.daemon.answers.get(key, (404, {"error": {"message": "no such path", "code": "not_found"}}))
            )

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

    def _json(self, status: int, body: Any) -> None:
        raw = json.dumps(body).encode() if not isinstance(body, bytes) else body
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("X-Mesh-Job", "job_" + "7a" * 16)
        self.end_headers()
        for line in self.daemon.stream:
            if line == "hold":  # until the client hangs up
                self.connection.recv(1)
                self.daemon.left.set()
                return
            self.wfile.write(line.encode() + b"\n\n")


@contextmanager
def serving(daemon: Daemon) -> Iterator[Daemon]:
    """Serve ``daemon`` on a free loopback port."""
    handler = type("Handler", (_Handler,), {"daemon": daemon})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        daemon.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield daemon
        finally:
            server.shutdown()
            thread.join()


def write_home(path: Path, url: str, *, token: str = TOKEN, pid: int | None = None) -> Path:
    """A home whose daemon, with our own process id, answers at ``url``."""
    path.mkdir(exist_ok=True)
    (path / "daemon.json").write_text(json.dumps({"pid": pid or os.getpid(), "api_url": url}))
    (path / "token").write_text(token + "\n")
    return path
