"""Meshes of real daemons for the live tests, shared where a test leaves them as it found them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshd.testing.cluster import Cluster, Node, Settings, alive_peers, ready_workers, until
from tests.engine.tiny import write_tiny
from tests.live.asking import TINY

SETTINGS: Settings = {"engine": {"slots": 4}, "jobs": {"patience_s": 2.0}}
FULL, SLOW = 0.5, 0.02
"""Of two cores: one thread all the time, and one thread for a small part of it, so that an answer lasts seconds."""

HEAL_TIMEOUT_S = 40.0


@dataclass
class Trio:
    """Two workers, the first of them the founder, and a submitter without a model."""

    cluster: Cluster
    alpha: Node
    bravo: Node
    carol: Node

    @property
    def nodes(self) -> tuple[Node, Node, Node]:
        return self.alpha, self.bravo, self.carol

    @property
    def workers(self) -> tuple[Node, Node]:
        return self.alpha, self.bravo

    def other(self, worker: Node) -> Node:
        """The worker that is not this one."""
        return self.bravo if worker is self.alpha else self.alpha

    def pace(self, cpu: float, *workers: Node) -> None:
        """How fast the workers (both, when none is named) answer from now on."""
        for worker in workers or self.workers:
            worker.post("/mesh/v1/share", {"cpu": cpu})

    def heal(self) -> None:
        """Whatever a test did: everybody runs, both workers share, idle and ready, and everybody sees everybody."""
        for node in self.nodes:
            if node.running:
                with suppress(ProcessLookupError):
                    self.cluster.thaw(node)
            # One that is stopping answers no more, and is waited for.
            until(lambda node=node: not node.running or node.connect(), HEAL_TIMEOUT_S, f"{node.name} runs or not")  # type: ignore[misc]
            if not node.running:
                self.cluster.up(node)
        self.pace(FULL)
        until(self._whole, HEAL_TIMEOUT_S, "the mesh is whole again")

    def _whole(self) -> bool:
        ids = {node.id for node in self.nodes}
        ready = {str(view["id"]) for view in ready_workers(self.carol, TINY) if view["slots_free"] == view["slots"]}
        return all(ids - {n.id} <= alive_peers(n) for n in self.nodes) and {w.id for w in self.workers} <= ready


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 1 MiB that never ends by itself."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def _trio(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Trio]:
    with Cluster(tmp_path_factory.mktemp("mesh"), SETTINGS) as cluster:
        alpha = cluster.found("alpha")
        bravo = cluster.join("bravo", alpha, site="paris", region="eu/fr/paris")
        carol = cluster.join("carol", alpha, clearance="restricted")
        for worker in (alpha, bravo):
            cluster.add_model(worker, tiny, TINY)
            cluster.share(worker, "50%")
        cluster.wait_to_meet()
        cluster.wait_for_workers(carol, 2, TINY)
        for node in cluster.nodes:
            keep_port(node)
        yield Trio(cluster, alpha, bravo, carol)


def keep_port(node: Node) -> None:
    """From its next start on the node listens where it listens now, as machines with a configured port do."""
    (address,) = node.status()["me"]["addresses"]
    config = node.home / "config.toml"
    config.write_text(config.read_text("utf-8").replace("/ip4/127.0.0.1/tcp/0", address), "utf-8")


@pytest.fixture
def trio(_trio: Trio, request: pytest.FixtureRequest) -> Iterator[Trio]:
    """The shared mesh, whole."""
    _trio.heal()
    request.node.stash[_CLUSTER] = _trio.cluster
    yield _trio


@pytest.fixture
def fresh(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A mesh of this test's own, without nodes."""
    with Cluster(tmp_path / "fresh", SETTINGS) as cluster:
        request.node.stash[_CLUSTER] = cluster
        yield cluster


_CLUSTER: pytest.StashKey[Cluster] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None] | Any:
    """A failed test shows the ends of its daemons' logs."""
    report = yield
    if report.failed and _CLUSTER in item.stash:
        report.sections.append(("logs of the daemons", item.stash[_CLUSTER].logs()))
    return report


def engine_pid(worker: Node) -> int:
    """The process that runs the worker's model."""
    (pid,) = [int(e["pid"]) for e in worker.status()["engines"] if e["pid"]]
    return pid


def signal_engine(worker: Node, what: signal.Signals) -> int:
    """Send a signal to the engine and not to its daemon; its pid."""
    pid = engine_pid(worker)
    os.kill(pid, what)
    return pid


def process_gone(pid: int) -> bool:
    """Whether the process ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
