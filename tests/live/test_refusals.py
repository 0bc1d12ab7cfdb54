"""A worker may say no, and then another one is asked; when nobody is left the app is told so, typed, in time."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.testing.cluster import Cluster, Node, running_worker, until
from tests.live.asking import TINY, Stream, ask, body, job_view
from tests.live.conftest import SLOW, Trio

pytestmark = pytest.mark.live


def workers_of(node: Node, request: dict[str, Any], times: int = 4) -> set[str]:
    """Who ran so many like it."""
    answers = [ask(node, request).json() for _ in range(times)]
    return {job_view(node, answer["mesh"]["job"])["attempts"][-1]["worker"] for answer in answers}


def refusal(node: Node, request: dict[str, Any]) -> dict[str, Any]:
    """The error object of a request that nobody can run."""
    answer = ask(node, {**request, "stream": True})
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["code"] == "mesh_no_worker"
    return dict(error)


@pytest.mark.parametrize("no", ["pause", "unshare", "drain"])
def test_a_worker_that_takes_nothing_is_passed_over(trio: Trio, no: str) -> None:
    trio.bravo.post(f"/mesh/v1/{no}")
    assert workers_of(trio.carol, body(max_tokens=4, exact=False)) == {trio.alpha.id}


def test_class_and_region_decide_who_may_run_it(trio: Trio) -> None:
    confidential = body(max_tokens=4, mesh={"class": "confidential"})
    french = body(max_tokens=4, mesh={"regions": ["eu/fr"]})
    assert workers_of(trio.carol, confidential) == {trio.alpha.id}
    assert workers_of(trio.carol, french) == {trio.bravo.id}
    assert "region" in refusal(trio.carol, body(mesh={"regions": ["us"]}))["message"]
    both = refusal(trio.carol, body(mesh={"regions": ["eu/fr"], "class": "restricted"}))
    assert "clearance" in both["message"] and both["hint"]


def test_nobody_left_is_told_before_the_first_byte(trio: Trio) -> None:
    for worker in trio.workers:
        worker.post("/mesh/v1/pause")
    error = refusal(trio.carol, body())
    assert "paused" in error["message"] and error["hint"]


def test_a_stream_that_nobody_can_complete_ends_in_a_typed_error(trio: Trio) -> None:
    trio.bravo.post("/mesh/v1/unshare")
    trio.pace(SLOW, trio.alpha)
    with Stream(trio.carol, body()) as stream:
        stream.read(pieces=20)
        assert running_worker(trio.carol, stream.job) == trio.alpha.id
        trio.cluster.kill(trio.alpha)
        stream.read()
    assert stream.error["code"] == "mesh_no_worker" and stream.error["message"]
    assert not stream.done and stream.finish is None and stream.usage == {}
    assert job_view(trio.carol, stream.job)["finish"] == "mesh_no_worker"


def test_a_machine_alone_answers_itself_and_shares_nothing_unasked(fresh: Cluster, tiny: Any) -> None:
    solo = fresh.found("solo")
    fresh.add_model(solo, tiny, TINY)

    # Alone, nothing shared, nobody to ask: its own model answers.
    assert solo.status()["me"]["state"] == "not_sharing" and solo.status()["peers"] == []
    with Stream(solo, body(max_tokens=50)) as stream:
        stream.read()
    assert stream.done and stream.usage["completion_tokens"] == 50
    (attempt,) = job_view(solo, stream.job)["attempts"]
    assert attempt["worker"] == solo.id

    # A second machine sees the model and gets nothing of it, until the owner shares.
    guest = fresh.join("guest", solo)
    fresh.wait_to_meet()
    until(lambda: [m["name"] for m in guest.get("/mesh/v1/models")["models"]] == [TINY], 30.0, "the model is seen")
    assert refusal(guest, body())["code"] == "mesh_no_worker"
    assert [j for j in solo.jobs() if j["role"] == "worker"] == []
    fresh.mesh(solo, "share", "--cpu", "50%")
    fresh.wait_for_workers(guest, 1, TINY)
    assert workers_of(guest, body(max_tokens=4), times=1) == {solo.id}
