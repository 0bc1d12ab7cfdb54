"""A whole mesh of real daemons in homes of their own on this machine, for tests, the demo and the benchmarks.

Each daemon is a process in a session of its own, listening on loopback ports that the system picks. What a person
does with `mesh` is done here with `mesh`; what an app does over HTTP is done over HTTP. Every wait polls a condition
and is bounded; when one fails, the error carries the ends of all daemons' logs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import httpx

from meshd.testing.model import MODEL_NAME

POLL_S: Final = 0.02
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0
COMMAND_TIMEOUT_S: Final = 60.0
MODEL_TIMEOUT_S: Final = 180.0
MEET_TIMEOUT_S: Final = 30.0
PASSPHRASE: Final = "correct horse battery staple"
LOG_TAIL_LINES: Final = 40

Settings = Mapping[str, Mapping[str, object]]
View = dict[str, Any]
T = TypeVar("T")

LOOPBACK: Final[Settings] = {
    "network": {"listen": ["/ip4/127.0.0.1/tcp/0"], "enrol_listen": "127.0.0.1:0", "mdns": False},
    "api": {"port": 0},
}
"""Ports are the system's choice, so that many clusters can run beside each other and beside a person's own daemon."""


class ClusterFailed(Exception):
    """The mesh did not do what was waited for; the text ends with the daemons' logs."""


def until(probe: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """The first true value of ``probe()``; raises ClusterFailed when there is none within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise ClusterFailed(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)


@dataclass
class Node:
    """One daemon: its home, and its process while it runs. Its API is reachable after `Cluster.up`."""

    name: str
    home: Path
    id: str = ""
    process: subprocess.Popen[bytes] | None = None
    http: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False))

    @property
    def pid(self) -> int:
        """Of the daemon; raises ClusterFailed when it never ran."""
        if self.process is None:
            raise ClusterFailed(f"{self.name} was never started")
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives (a frozen one does)."""
        return self.process is not None and self.process.poll() is None

    @property
    def api_url(self) -> str:
        """Base of the local API, without ``/v1``."""
        return str(json.loads((self.home / "daemon.json").read_text("utf-8"))["api_url"]).rstrip("/")

    @property
    def token(self) -> str:
        """Bearer token of the local API."""
        return (self.home / "token").read_text("utf-8").strip()

    @property
    def log(self) -> Path:
        """Everything the daemon wrote."""
        return self.home / "daemon.log"

    def get(self, path: str, timeout_s: float = 10.0) -> View:
        """The JSON object at ``path``; raises httpx errors."""
        return self._call("GET", path, None, timeout_s)

    def post(self, path: str, body: View | None = None, timeout_s: float = 30.0) -> View:
        """What the daemon answers to ``body``; raises httpx errors."""
        return self._call("POST", path, body or {}, timeout_s)

    def status(self) -> View:
        """`mesh status` as data."""
        return self.get("/mesh/v1/status")

    def jobs(self) -> list[View]:
        """Jobs of this node, newest first."""
        return list(self.get("/mesh/v1/jobs")["jobs"])

    def _call(self, method: str, path: str, body: View | None, timeout_s: float) -> View:
        answer = self.http.request(method, path, json=body, timeout=timeout_s)
        if answer.is_error:
            raise ClusterFailed(f"{self.name}: {method} {path}: HTTP {answer.status_code}: {answer.text[:500]}")
        return dict(answer.json())

    def connect(self) -> bool:
        """Point the HTTP client at the running daemon; false while it does not answer yet."""
        try:
            url, token = self.api_url, self.token
            if json.loads((self.home / "daemon.json").read_text("utf-8"))["pid"] != self.pid:
                return False
            self.http.close()
            self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
            self.id = str(self.status()["me"]["id"])
        except (OSError, ValueError, KeyError, httpx.HTTPError):
            return False
        return True


class Cluster:
    """Daemons below ``directory``. A context manager: leaving it ends every process that it started."""

    def __init__(self, directory: Path, settings: Settings | None = None) -> None:
        self.directory = directory
        self.settings = settings or {}
        self.nodes: list[Node] = []

    def __enter__(self) -> Cluster:
        self.directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
            error.add_note(self.logs())
        self.close()

    def found(self, name: str, org: str = "harbour") -> Node:
        """A node that creates the organisation ``org``; it holds the issuer key, and runs afterwards."""
        node = self._new(name)
        secret = self.directory / "passphrase"
        secret.touch(mode=0o600)
        secret.write_text(PASSPHRASE + "\n", "utf-8")
        self.mesh(node, "org", "init", org, "--node-name", name, "--passphrase-file", str(secret))
        self.up(node)
        return node

    def join(self, name: str, issuer: Node, **invite: str) -> Node:
        """A node that joins by an invite of ``issuer`` (options of `mesh invite`, like site="paris"), and runs."""
        options = [word for key, value in invite.items() for word in (f"--{key}", value)]
        text = json.loads(self.mesh(issuer, "invite", "--json", *options))["invite"]
        node = self._new(name)
        file = self.directory / f"{name}.invite"
        file.touch(mode=0o600)
        file.write_text(text + "\n", "utf-8")
        self.mesh(node, "join", "--file", str(file), "--name", name)
        file.unlink()
        self.up(node)
        return node

    def _new(self, name: str) -> Node:
        node = Node(name, self.directory / name)
        node.home.mkdir(mode=0o700)
        sections = {key: {**LOOPBACK.get(key, {}), **self.settings.get(key, {})} for key in {*LOOPBACK, *self.settings}}
        (node.home / "config.toml").write_text(_toml(sections), "utf-8")
        self.nodes.append(node)
        return node

    def up(self, node: Node) -> None:
        """Start the daemon and wait until it answers."""
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "meshd.app", "--home", str(node.home), "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=node.home,
                start_new_session=True,
            )

        def answers() -> bool:
            if not node.running:
                raise ClusterFailed(f"{node.name} ended with status {node.process and node.process.returncode}")
            return node.connect()

        until(answers, START_TIMEOUT_S, f"{node.name} answers")

    def mesh(self, node: Node, *words: str, stdin: str = "", timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """What `mesh` prints for ``words`` on this node; raises ClusterFailed when it fails."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mesh_cli.main", "--home", str(node.home), *words],
            input=stdin.encode(),
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
            raise ClusterFailed(f"{node.name}: mesh {' '.join(words)}: exit {done.returncode}: {said}")
        return done.stdout.decode("utf-8", "replace")

    def share(self, node: Node, cpu: str = "100%", memory: str = "4GiB") -> None:
        """Opt the node in as a worker."""
        self.mesh(node, "share", "--cpu", cpu, "--memory", memory)

    def add_model(self, node: Node, path: Path, name: str = MODEL_NAME) -> None:
        """Offer the model file on the node."""
        self.mesh(node, "model", "add", str(path), "--name", name, timeout_s=MODEL_TIMEOUT_S)

    def wait_to_meet(self, timeout_s: float = MEET_TIMEOUT_S) -> None:
        """Wait until every running node sees every other one alive."""
        deadline = time.monotonic() + timeout_s
        running = [node for node in self.nodes if node.running]
        for node in running:
            meets = partial(_sees, node, {other.id for other in running} - {node.id})
            until(meets, max(0.0, deadline - time.monotonic()), f"{node.name} sees every other node alive")

    def wait_for_workers(self, node: Node, count: int, model: str = MODEL_NAME, timeout_s: float = 60.0) -> None:
        """Wait until ``node`` knows ``count`` workers that have ``model`` loaded and a slot free."""
        until(lambda: len(ready_workers(node, model)) >= count, timeout_s, f"{node.name} sees {count} workers ready")

    def by_id(self, node_id: str) -> Node:
        """The node with this id; raises ClusterFailed."""
        for node in self.nodes:
            if node.id == node_id:
                return node
        raise ClusterFailed(f"no node has the id {node_id}")

    def kill(self, node: Node) -> None:
        """SIGKILL the daemon, as a power cut would; its engine must notice by itself."""
        os.kill(node.pid, signal.SIGKILL)
        if node.process is not None:
            node.process.wait(STOP_TIMEOUT_S)

    def freeze(self, node: Node) -> None:
        """SIGSTOP the daemon and what belongs to it: its connections stay, and nothing answers."""
        os.killpg(node.pid, signal.SIGSTOP)

    def thaw(self, node: Node) -> None:
        """Let a frozen node go on."""
        os.killpg(node.pid, signal.SIGCONT)

    def down(self, node: Node) -> None:
        """Stop the daemon in an orderly way."""
        if node.running and node.process is not None:
            node.process.terminate()
            node.process.wait(STOP_TIMEOUT_S)

    def logs(self) -> str:
        """The end of every daemon's log."""
        parts = []
        for node in self.nodes:
            with suppress(OSError):
                lines = node.log.read_text("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:]
                parts.append("\n".join([f"--- log of {node.name} ---", *lines]))
        return "\n".join(parts)

    def close(self) -> None:
        """End every process that this cluster started, engines included."""
        for node in self.nodes:
            if node.running and node.process is not None:
                with suppress(ProcessLookupError):
                    self.thaw(node)
                node.process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for node in self.nodes:
            if node.process is not None:
                with suppress(subprocess.TimeoutExpired):
                    node.process.wait(max(0.0, deadline - time.monotonic()))
                # The group outlives its leader while an engine does; ours, since the session is ours.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(node.process.pid, signal.SIGKILL)
                node.process.wait()
            node.http.close()


def _sees(node: Node, others: set[str]) -> bool:
    return others <= alive_peers(node)


def alive_peers(node: Node) -> set[str]:
    """Ids of the peers that ``node`` sees alive."""
    return {str(peer["id"]) for peer in node.status()["peers"] if peer["liveness"] == "alive"}


def ready_workers(node: Node, model: str = MODEL_NAME) -> list[View]:
    """The nodes, ``node`` included, that it sees alive with ``model`` ready and a slot free."""
    status = node.status()
    candidates = [status["me"], *(peer for peer in status["peers"] if peer["liveness"] == "alive")]
    return [
        view
        for view in candidates
        if view["slots_free"] > 0 and any(offer["name"] == model and offer["ready"] for offer in view["models"])
    ]


def running_worker(node: Node, job: str | None = None) -> str | None:
    """Id of the worker that runs this node's job (the newest, or the one with this id) now; None when none does."""
    for view in node.jobs():
        if view["role"] == "submitter" and job in (None, view["id"]):
            running = [attempt for attempt in view["attempts"] if not attempt["outcome"]]
            return str(running[-1]["worker"]) if running and view["ended_at"] is None else None
    return None


def _toml(sections: Settings) -> str:
    """Sections of plain values as TOML; JSON's strings, numbers, booleans and lists are TOML's as well."""
    parts = []
    for name, values in sections.items():
        parts.append(f"[{name}]")
        parts += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(parts) + "\n"
