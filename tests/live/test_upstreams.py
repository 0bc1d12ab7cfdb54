"""A worker in front of a server that is not ours: daemons and `mesh` as people run them. The server is
llama-cpp-python's own with a tiny model; where an answer must go on in its middle, which that one cannot, a scripted
one that can."""

from __future__ import annotations

import json
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshd.testing.cluster import Cluster, ClusterFailed, Node, Settings, View, running_worker, until
from tests.engine.scripted_server import MODEL as BIG
from tests.engine.tiny import write_tiny
from tests.engine.upstream_server import MODEL as TINY_THERE
from tests.engine.upstream_server import RealServer, free_port, real_server
from tests.live.asking import Stream, ask, job_view
from tests.live.upstream_script import Counting, counted, counting_server

pytestmark = pytest.mark.live

SETTINGS: Settings = {
    "engine": {"slots": 4},
    "jobs": {"patience_s": 1.0},
    "upstreams": {"check_interval_s": 0.3, "max_rest_s": 0.5, "stall_timeout_s": 3.0, "check_timeout_s": 3.0},
}
KEY = "open-sesame-4711"
FAR, COUNT = "far", "count"


@dataclass
class Racks:
    """Alpha stands in front of both servers, bravo of the counting one; carol asks, and has nothing."""

    cluster: Cluster
    alpha: Node
    bravo: Node
    carol: Node
    real: RealServer
    counting: Counting


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text(KEY + "\n")
    return path


@pytest.fixture(scope="module")
def racks(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Iterator[Racks]:
    # That server stops streaming for good at bytes that are no text; a random model is full of them.
    tiny = write_tiny(tmp_path_factory.mktemp("plain") / "tiny.gguf", ascii_only=True)
    with (
        real_server(tiny, key=KEY) as real,
        counting_server() as counting,
        Cluster(tmp_path_factory.mktemp("racks"), SETTINGS) as cluster,
    ):
        alpha = cluster.found("alpha")
        bravo = cluster.join("bravo", alpha, clearance="restricted")
        carol = cluster.join("carol", alpha, clearance="restricted")
        for worker in (alpha, bravo):
            cluster.share(worker)
            cluster.mesh(worker, "upstream", "add", counting.server.url, "--model", BIG, "--name", COUNT)
        add_far(cluster, alpha, real, "--key-file", str(key_file))
        cluster.wait_to_meet()
        yield Racks(cluster, alpha, bravo, carol, real, counting)


def add_far(cluster: Cluster, node: Node, real: RealServer, *words: str) -> View:
    said = cluster.mesh(node, "upstream", "add", real.url, "--model", TINY_THERE, "--name", FAR, "--json", *words)
    return dict(json.loads(said))


class ChatStream(Stream):
    """A streamed answer of a chat."""

    def __init__(self, node: Node, request: View) -> None:
        super().__init__(node, request, "/v1/chat/completions")

    def _event(self, event: View) -> None:
        choices = [{**c, "text": c["delta"].get("content") or ""} for c in event.get("choices", ())]
        super()._event({**event, "choices": choices})


def chat(model: str, max_tokens: int, **more: Any) -> View:
    messages = [{"role": "user", "content": "count"}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **more}


def offers(node: Node, model: str, count: int) -> None:
    """Wait until ``node`` knows ``count`` nodes that offer the model."""

    def known() -> bool:
        models = node.get("/mesh/v1/models")["models"]
        return sum(len(m["ready"]) for m in models if m["name"] == model) == count

    until(known, 30.0, f"{node.name} knows {count} offers of {model}")


def test_it_is_listed_with_its_state_and_without_its_key(racks: Racks) -> None:
    (count, far) = json.loads(racks.cluster.mesh(racks.alpha, "upstream", "list", "--json"))["upstreams"]
    assert (count["name"], count["has_key"], count["abilities"]) == (COUNT, False, ["generate", "resume"])
    assert (far["name"], far["has_key"], far["state"], far["abilities"]) == (FAR, True, "ready", ["generate"])
    assert far["class_max"] == "internal" and far["prompts"] == ["chat", "text"]
    (model,) = (m for m in racks.alpha.status()["models"] if m["name"] == FAR)
    assert (model["device"], model["ready"]) == ("upstream", True)
    shown = racks.cluster.mesh(racks.alpha, "upstream", "list") + racks.cluster.mesh(racks.alpha, "status")
    assert FAR in shown and KEY not in shown + json.dumps(racks.alpha.status())
    assert KEY not in racks.alpha.log.read_text("utf-8")
    holders = [p for p in racks.alpha.home.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert holders and all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in holders)


def test_adding_says_what_is_wrong(racks: Racks, key_file: Path) -> None:
    url = racks.real.url
    for words, said in (
        ((url, "--model", TINY_THERE), "refuses the key"),
        ((url, "--model", "huge", "--key-file", str(key_file)), TINY_THERE),
        ((f"http://127.0.0.1:{free_port()}", "--model", "x"), "connection failed"),
        ((url, "--model", TINY_THERE, "--name", COUNT), "another"),
        ((racks.counting.server.url, "--model", BIG, "--name", "again"), f"already, as {COUNT}"),
    ):
        with pytest.raises(ClusterFailed, match=said if said != "another" else "offered here as count"):
            racks.cluster.mesh(racks.bravo if words[0] == url else racks.alpha, "upstream", "add", *words)


def test_a_streamed_chat_goes_through_another_node_and_its_server(racks: Racks) -> None:
    offers(racks.carol, FAR, 1)
    with ChatStream(racks.carol, chat(FAR, 30)) as stream:
        stream.read()
    assert stream.done and stream.finish == "length" and stream.text
    assert job_view(racks.carol, stream.job)["attempts"][0]["worker"] == racks.alpha.id
    # The same through no stream, and as a completion.
    whole = ask(racks.carol, chat(FAR, 30), "/v1/chat/completions").json()
    assert whole["choices"][0]["message"]["content"] == stream.text
    text = ask(racks.carol, {"model": FAR, "prompt": "Once", "max_tokens": 20, "temperature": 0})
    assert text.status_code == 200 and text.json()["choices"][0]["text"]


def test_counts_are_the_servers(racks: Racks) -> None:
    offers(racks.carol, COUNT, 2)
    answer = ask(racks.carol, chat(COUNT, 5), "/v1/chat/completions").json()
    assert answer["choices"][0]["message"]["content"] == counted(0, 5)
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (12, 5)


def test_data_above_the_upstreams_class_never_goes_there(racks: Racks) -> None:
    offers(racks.carol, COUNT, 2)
    asked = len(racks.counting.answers)
    for node in (racks.carol, racks.bravo):
        refused = ask(node, chat(COUNT, 5, mesh={"class": "confidential"}), "/v1/chat/completions")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "mesh_no_worker")
        assert "clearance" in refused.json()["error"]["message"]
    assert len(racks.counting.answers) == asked


def test_what_it_cannot_do_is_refused_by_name(racks: Racks) -> None:
    refused = ask(racks.carol, chat(COUNT, 5, mesh={"exact": True}), "/v1/chat/completions")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "mesh.exact")


def test_when_the_server_breaks_off_the_answer_goes_on_at_another_node_in_front_of_it(racks: Racks) -> None:
    offers(racks.carol, COUNT, 2)
    racks.counting.break_at = 10
    with ChatStream(racks.carol, chat(COUNT, 40)) as stream:
        stream.read()
    assert stream.done and stream.text == counted(0, 40) and not stream.error
    assert [r["reason"] for r in stream.reroutes] == ["engine_failed"]
    first, second = job_view(racks.carol, stream.job)["attempts"]
    assert {first["worker"], second["worker"]} == {racks.alpha.id, racks.bravo.id}
    assert racks.counting.answers[-1][-1] == {"role": "assistant", "content": counted(0, 10).strip()}


def test_when_the_node_is_lost_the_answer_goes_on_at_another_in_front_of_the_same_server(racks: Racks) -> None:
    offers(racks.carol, COUNT, 2)
    with ChatStream(racks.carol, chat(COUNT, 150)) as stream:
        stream.read(pieces=10)
        lost = racks.cluster.by_id(str(until(lambda: running_worker(racks.carol, stream.job), 5.0, "it has a worker")))
        racks.cluster.kill(lost)
        stream.read()
    assert stream.done and stream.text == counted(0, 150) and len(stream.reroutes) == 1
    # Up again, it stands in front of the same servers as before, without being told.
    racks.cluster.up(lost)
    offers(racks.carol, COUNT, 2)


def test_a_server_killed_in_mid_stream_that_cannot_go_on_ends_in_the_error_and_comes_back_by_itself(
    racks: Racks,
) -> None:
    offers(racks.carol, FAR, 1)
    with ChatStream(racks.carol, chat(FAR, 1000)) as stream:
        stream.read(pieces=5)
        racks.real.kill()
        stream.read()
    assert stream.error["code"] == "mesh_no_worker" and not stream.done and stream.finish is None
    assert len(job_view(racks.carol, stream.job)["attempts"]) == 1, "restart-only: nobody may go on in its middle"
    offers(racks.carol, FAR, 0)
    (engine,) = (e for e in racks.alpha.status()["engines"] if e["model"] == FAR)
    assert engine["state"] == "resting" and engine["reason"]
    racks.real.start(KEY)
    offers(racks.carol, FAR, 1)
    assert ask(racks.carol, chat(FAR, 5), "/v1/chat/completions").status_code == 200


def test_a_frozen_server_is_given_up_and_found_again(racks: Racks) -> None:
    offers(racks.carol, FAR, 1)
    with ChatStream(racks.carol, chat(FAR, 1000)) as stream:
        stream.read(pieces=5)
        racks.real.send(signal.SIGSTOP)
        try:
            stream.read()
        finally:
            racks.real.send(signal.SIGCONT)
    assert stream.error["code"] == "mesh_no_worker" and not stream.done
    offers(racks.carol, FAR, 1)


def test_removed_it_is_offered_no_more_and_its_key_is_gone(racks: Racks, key_file: Path) -> None:
    racks.cluster.mesh(racks.alpha, "upstream", "rm", FAR)
    offers(racks.carol, FAR, 0)
    assert [u["name"] for u in racks.alpha.get("/mesh/v1/upstreams")["upstreams"]] == [COUNT]
    with pytest.raises(ClusterFailed, match="no upstream"):
        racks.cluster.mesh(racks.alpha, "upstream", "rm", FAR)
    view = add_far(racks.cluster, racks.alpha, racks.real, "--key-file", str(key_file), "--context", "2048")
    assert view["context_tokens"] == 2048
    offers(racks.carol, FAR, 1)
