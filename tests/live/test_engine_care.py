"""A real daemon looks after its engine: what an app and the owner see of loading, failures, rests and idleness."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshd.testing.cluster import Cluster, Node, Settings, View, until
from tests.engine.tiny import write_tiny
from tests.live.asking import TINY, Stream, ask, body
from tests.live.conftest import SLOW, engine_pid, process_gone

pytestmark = pytest.mark.live
ON_DEMAND: Settings = {
    "engine": {"slots": 2, "preload": False, "idle_unload_s": 1.0},
    "jobs": {"patience_s": 4.0, "queue_s": 4.0, "max_waiting": 0},
}
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A mesh of one machine, whose model is loaded only when somebody asks for it."""
    home = tmp_path_factory.mktemp("alone")
    with Cluster(home, ON_DEMAND) as cluster:
        node = cluster.found("alpha")
        cluster.add_model(node, write_tiny(home / "tiny.gguf"), TINY)
        cluster.share(node)
        yield node


def engine(node: Node) -> View:
    """The one model's engine, loaded or not."""
    (only,) = node.status()["engines"]
    return dict(only)


def in_state(node: Node, state: str) -> View:
    """The engine, as soon as it is in that state."""
    return until(lambda: e if (e := engine(node))["state"] == state else None, TIMEOUT_S, f"the engine is {state}")


def test_loading_is_told_to_the_app_and_an_unused_model_goes_and_comes_back(alone: Node) -> None:
    assert (in_state(alone, "idle")["pid"], engine(alone)["reason"]) == (0, "loads when it is needed")
    for _ in range(2):
        with Stream(alone, body(max_tokens=5)) as stream:
            stream.read()
        assert stream.done and stream.usage["completion_tokens"] == 5
        assert any(c.startswith(": mesh loading ") for c in stream.comments), "before its first token"
        assert "not used for 1 s" in in_state(alone, "idle")["reason"]


def test_a_kill_in_the_middle_of_an_answer_costs_it_nothing_even_on_the_only_machine(alone: Node) -> None:
    alone.post("/mesh/v1/share", {"cpu": SLOW})
    with Stream(alone, body(max_tokens=80)) as stream:
        stream.read(pieces=10)
        pid = engine_pid(alone)
        os.kill(pid, signal.SIGKILL)
        alone.post("/mesh/v1/share", {"cpu": 1.0})
        stream.read()
    assert process_gone(pid) and "the engine of tiny failed: the engine died (signal 9" in alone.log.read_text("utf-8")
    assert stream.done and stream.text == ask(alone, body(max_tokens=80)).json()["choices"][0]["text"]
    assert [r["reason"] for r in stream.reroutes] == ["engine_failed"]


def test_when_every_slot_is_taken_and_nobody_may_wait_the_app_is_told_to_come_back(alone: Node) -> None:
    alone.post("/mesh/v1/share", {"cpu": SLOW})
    with Stream(alone, body(max_tokens=1000)) as one, Stream(alone, body(max_tokens=1000)) as two:
        one.read(pieces=1)
        two.read(pieces=1)
        for streamed in (False, True):
            refused = ask(alone, {**body(max_tokens=5), "stream": streamed})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "mesh_overloaded")
            assert float(refused.headers["Retry-After"]) > 0
    alone.post("/mesh/v1/share", {"cpu": 1.0})


def test_a_file_that_was_damaged_is_not_tried_again_until_it_is_added_again(alone: Node) -> None:
    in_state(alone, "idle")
    (file,) = Path(alone.home).parent.rglob("tiny.gguf")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused = ask(alone, body(max_tokens=5))
    assert refused.status_code in (404, 503), refused.text
    resting = in_state(alone, "resting")
    assert "cut short" in resting["reason"] and "until the file changes" in resting["reason"]
    assert "cut short" in alone.status()["me"]["reason"] and alone.status()["models"] == []
    assert ask(alone, body(max_tokens=5)).json()["error"]["code"] == "model_not_found"
    file.write_bytes(whole)
    alone.post("/mesh/v1/models", {"path": str(file), "name": TINY})
    assert ask(alone, body(max_tokens=5)).status_code == 200
