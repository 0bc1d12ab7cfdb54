"""A server that is not ours: llama-cpp-python's own, in a process, with the tiny model."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

START_TIMEOUT_S = 60.0
MODEL = "tiny-there"


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealServer:
    """The server; `start` it, `kill` it, start it again on the same port."""

    def __init__(self, model: Path, *words: str) -> None:
        self.port = free_port()
        self._words = (
            *("--model", str(model), "--model_alias", MODEL, "--host", "127.0.0.1", "--port", str(self.port)),
            *("--n_ctx", "2048", "--n_threads", "1", "--interrupt_requests", "false", "--verbose", "false", *words),
        )
        self._log = model.parent / f"server-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its base address."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self, key: str = "") -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "llama_cpp.server", *self._words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        while True:
            assert self._process.poll() is None, self._log.read_text("utf-8", "replace")[-2000:]
            assert time.monotonic() < deadline, "the server does not come up"
            try:
                if httpx.get(f"{self.url}/models", headers=headers, trust_env=False).status_code == 200:
                    return
            except (httpx.ConnectError, httpx.ReadError):
                time.sleep(POLL_S)

    def send(self, what: signal.Signals) -> None:
        """Signal the process."""
        assert self._process is not None
        os.kill(self._process.pid, what)

    def kill(self) -> None:
        """SIGKILL, as a power cut would; nothing if it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


POLL_S = 0.05


@contextmanager
def real_server(model: Path, *words: str, key: str = "") -> Iterator[RealServer]:
    """One that runs while in the context."""
    server = RealServer(model, *words, *(("--api_key", key) if key else ()))
    try:
        server.start(key)
        yield server
    finally:
        server.kill()
