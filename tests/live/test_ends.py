"""What is not wanted any more ends, everywhere and at once; what is wanted at the same time does not get mixed up."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from meshd.testing.cluster import Node, running_worker, until
from tests.live.asking import Stream, ask, body, job_view
from tests.live.conftest import SLOW, Trio, engine_pid, process_gone

pytestmark = pytest.mark.live

FREE_AGAIN_S = 4.0
"""A cancel that is lost shows in the lease, renewed half a second ago at most, which ends after 5 s."""

STOP_S = 15.0
"""The answers here go on for much longer, and an engine that nobody ends stays for ever."""

STREAMS = 16


def all_free(node: Node) -> bool:
    """Whether the node's slots and its engine's sequences are all free."""
    status = node.status()
    return status["me"]["slots_free"] == status["me"]["slots"] and all(
        engine["slots_free"] == engine["slots"] for engine in status["engines"]
    )


def test_a_client_that_hangs_up_frees_the_worker(trio: Trio) -> None:
    trio.pace(SLOW)
    with Stream(trio.carol, body(max_tokens=1000)) as stream:
        stream.read(pieces=10)
        worker = trio.cluster.by_id(str(running_worker(trio.carol, stream.job)))
        assert not all_free(worker)
    since_s = time.monotonic()
    until(lambda: all_free(worker), FREE_AGAIN_S, "the worker's slot is free again")
    print(f"free after {(time.monotonic() - since_s) * 1000:.0f} ms")
    assert job_view(trio.carol, stream.job)["finish"] == "cancelled"


def test_a_client_that_gives_up_a_whole_answer_frees_the_worker(trio: Trio) -> None:
    trio.pace(SLOW)
    app = http.client.HTTPConnection(trio.carol.api_url.removeprefix("http://"))
    headers = {"Authorization": f"Bearer {trio.carol.token}", "Content-Type": "application/json"}
    app.request("POST", "/v1/completions", json.dumps(body(max_tokens=1000)), headers)
    until(lambda: running_worker(trio.carol), 20.0, "the answer has a worker")
    app.close()
    until(lambda: all(all_free(worker) for worker in trio.workers), FREE_AGAIN_S, "the workers' slots are free again")
    until(lambda: trio.carol.jobs()[0]["finish"] == "cancelled", 10.0, "the job is over")


def test_sixteen_answers_at_once_are_each_the_right_one(trio: Trio) -> None:
    wanted = {f"Question {i}: what comes after {i}?": 40 + i for i in range(STREAMS)}
    alone = {p: ask(trio.carol, body(p, max_tokens=n)).json()["choices"][0]["text"] for p, n in wanted.items()}
    assert len(set(alone.values())) == STREAMS

    def listen(prompt: str) -> Stream:
        with Stream(trio.carol, body(prompt, max_tokens=wanted[prompt])) as stream:
            return stream.read()

    with ThreadPoolExecutor(STREAMS) as apps:
        answers = dict(zip(wanted, apps.map(listen, wanted), strict=True))
    for prompt, stream in answers.items():
        assert stream.done and stream.finish == "length", stream.error
        assert stream.text == alone[prompt]
        assert stream.usage["completion_tokens"] == wanted[prompt]
        assert stream.usage["total_tokens"] == stream.usage["prompt_tokens"] + wanted[prompt]
    workers = {job_view(trio.carol, stream.job)["attempts"][-1]["worker"] for stream in answers.values()}
    assert workers == {worker.id for worker in trio.workers}
    assert all(job_view(trio.carol, stream.job)["ended_at"] for stream in answers.values())


def test_a_daemon_that_is_asked_to_stop_stops_and_takes_its_engine_along(trio: Trio) -> None:
    trio.pace(SLOW, trio.alpha)
    trio.bravo.post("/mesh/v1/pause")
    engine = engine_pid(trio.alpha)
    with Stream(trio.alpha, body(max_tokens=1000)) as stream:
        stream.read(pieces=5)
        since_s = time.monotonic()
        os.kill(trio.alpha.pid, signal.SIGTERM)
        stream.read()
    assert trio.alpha.process is not None
    assert trio.alpha.process.wait(STOP_S) == 0
    print(f"stopped after {(time.monotonic() - since_s) * 1000:.0f} ms")
    assert process_gone(engine)
    assert stream.error["code"] and not stream.done and stream.finish is None
    assert not (trio.alpha.home / "daemon.json").exists()


def test_the_engine_of_a_killed_daemon_ends_by_itself(trio: Trio) -> None:
    trio.pace(SLOW, trio.bravo)
    engine = engine_pid(trio.bravo)
    with Stream(trio.bravo, body(max_tokens=1000)) as stream:
        stream.read(pieces=5)
        trio.cluster.kill(trio.bravo)
    until(lambda: process_gone(engine), STOP_S, "the engine ends without its daemon")
