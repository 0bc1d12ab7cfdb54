"""The main promise: an answer survives the worker that was giving it, at the exact token, and says what happened."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from meshd.testing.cluster import Node, alive_peers, running_worker, until
from tests.live.asking import Stream, ask, body, job_view
from tests.live.conftest import FULL, SLOW, Trio, process_gone, signal_engine

pytestmark = pytest.mark.live

TOKENS = 260
CUT_AFTER_PIECES = 30
NOTICE_SILENCE_S = 2.0
NOISE_S = 5.0
"""What a busy machine may add to any measured time. Silence that is not noticed ends with the last ad, after 10 s."""


@pytest.fixture(scope="module")
def undisturbed(_trio: Trio) -> str:
    """The whole text of a run in which nothing happens."""
    _trio.heal()
    answer = ask(_trio.carol, body(max_tokens=TOKENS)).json()
    assert answer["usage"]["completion_tokens"] == TOKENS and answer["mesh"]["attempts"] == 1
    text = str(answer["choices"][0]["text"])
    assert len(set(text)) > 40, "a monotonous text would hide a token lost or doubled"
    return text


def worker_of(trio: Trio, stream: Stream) -> Node:
    """Who gives this answer now."""
    return trio.cluster.by_id(until(lambda: running_worker(trio.carol, stream.job), 20.0, "the job has a worker"))


def gap_s(stream: Stream, cut_at_s: float) -> float:
    """From the cut until text came again."""
    before = max((at for at in stream.times_s if at <= cut_at_s), default=cut_at_s)
    return min(at for at in stream.times_s if at > cut_at_s + 0.001) - max(before, cut_at_s)


def disturb(trio: Trio, harm: Callable[[Node], object]) -> tuple[Stream, Node, float]:
    """An answer whose worker suffers ``harm`` in the middle: (the answer, that worker, when)."""
    trio.pace(SLOW)
    with Stream(trio.carol, body(max_tokens=TOKENS)) as stream:
        stream.read(pieces=CUT_AFTER_PIECES)
        worker = worker_of(trio, stream)
        cut_at_s = time.monotonic()
        harm(worker)
        trio.pace(FULL, trio.other(worker))
        stream.read()
    return stream, worker, cut_at_s


def check_whole(trio: Trio, stream: Stream, lost: Node, text: str, reason: str) -> None:
    """Everything that must hold of an answer that moved once from ``lost`` to the other worker."""
    assert stream.error == {} and stream.done and stream.finish == "length"
    assert stream.text == text
    assert stream.usage["completion_tokens"] == TOKENS
    # A worker whose engine rests after a test before declines; that is no attempt at the answer.
    tried = [a for a in job_view(trio.carol, stream.job)["attempts"] if not a["outcome"].startswith("declined")]
    first, second = tried
    assert stream.mesh["attempts"] == second["number"]
    assert (first["worker"], second["worker"]) == (lost.id, trio.other(lost).id)
    assert first["outcome"] == reason
    assert first["tokens"] and second["tokens"] and first["tokens"] + second["tokens"] == TOKENS
    (moved,) = stream.reroutes
    told = (moved["attempt"], moved["worker"], moved["at_token"], moved["reason"])
    assert told == (str(second["number"]), trio.other(lost).name, str(first["tokens"]), reason)
    for keeper in (trio.carol, trio.other(lost)):
        is_kept = partial(holds, keeper, stream.job, stream.mesh["receipt"])
        until(is_kept, 20.0, f"the receipt is in the ledger of {keeper.name}")


def holds(node: Node, job: str, receipt: str) -> bool:
    """Whether the receipt of that job is in the node's ledger."""
    return receipt in receipts(node, job)


def receipts(node: Node, job: str) -> list[str]:
    """Ids of the receipts of a job in the node's ledger."""
    connection = sqlite3.connect(f"file:{node.home / 'node.db'}?mode=ro", uri=True)
    try:
        return [str(row[0]) for row in connection.execute("SELECT id FROM receipts WHERE job = ?", (job,))]
    finally:
        connection.close()


def test_the_worker_is_killed_in_mid_stream(trio: Trio, undisturbed: str) -> None:
    stream, lost, at_s = disturb(trio, trio.cluster.kill)
    check_whole(trio, stream, lost, undisturbed, "connection_lost")
    print(f"gap: {round(gap_s(stream, at_s) * 1000)} ms")


def test_the_worker_freezes_in_mid_stream(trio: Trio, undisturbed: str) -> None:
    stream, lost, at_s = disturb(trio, trio.cluster.freeze)
    (moved,) = stream.reroutes
    assert moved["reason"] in ("silent", "connection_lost")
    check_whole(trio, stream, lost, undisturbed, moved["reason"])
    moved_s = gap_s(stream, at_s)
    print(f"gap: {round(moved_s * 1000)} ms")
    assert moved_s < NOTICE_SILENCE_S + NOISE_S, "silence was noticed late"
    assert lost.id not in alive_peers(trio.carol)
    trio.cluster.thaw(lost)
    until(lambda: lost.id in alive_peers(trio.carol), 30.0, "the thawed worker is alive for the submitter again")
    until(lambda: lost.status()["me"]["slots_free"] == 4, 10.0, "the thawed worker runs no orphan")


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGABRT])
def test_the_engine_crashes_and_its_daemon_lives(trio: Trio, undisturbed: str, death: signal.Signals) -> None:
    stream, lost, at_s = disturb(trio, lambda worker: signal_engine(worker, death))
    check_whole(trio, stream, lost, undisturbed, "engine_failed")
    print(f"gap: {round(gap_s(stream, at_s) * 1000)} ms")
    assert lost.running
    until(lambda: lost.id in alive_peers(trio.carol), 10.0, "the worker is alive for the submitter")
    trio.cluster.mesh(trio.other(lost), "pause")
    # Its engine rests a moment, and the submitter trusts it again only after a while: both are bounded.
    until(lambda: ask(trio.carol, body(max_tokens=20)).status_code == 200, 60.0, "the engine is started again")
    assert trio.carol.jobs()[0]["attempts"][-1]["worker"] == lost.id


@pytest.mark.parametrize("leave", [("drain", "--deadline", "0s"), ("unshare",)])
def test_a_worker_that_leaves_in_good_order_hands_over(trio: Trio, undisturbed: str, leave: tuple[str, ...]) -> None:
    stream, lost, _ = disturb(trio, lambda worker: trio.cluster.mesh(worker, *leave))
    check_whole(trio, stream, lost, undisturbed, "draining")
    assert lost.status()["me"]["state"] in ("draining", "not_sharing")


def test_a_worker_that_is_stopped_in_good_order_hands_over(trio: Trio, undisturbed: str) -> None:
    stream, lost, _ = disturb(trio, lambda worker: os.kill(worker.pid, signal.SIGTERM))
    check_whole(trio, stream, lost, undisturbed, "draining")
    until(lambda: not lost.running, 15.0, "the stopped daemon is gone")


def test_the_worker_dies_between_its_yes_and_the_first_token(trio: Trio, undisturbed: str) -> None:
    # Engines that are stopped take no prompt: the job stays accepted for as long as the test needs.
    engines = {worker.id: signal_engine(worker, signal.SIGSTOP) for worker in trio.workers}
    streams: list[Stream] = []

    def listen() -> None:
        with Stream(trio.carol, body(max_tokens=TOKENS)) as stream:
            streams.append(stream.read())

    app = threading.Thread(target=listen)
    app.start()
    try:
        until(lambda: any(j["state"] == "accepted" for j in trio.carol.jobs()), 20.0, "a worker accepts")
        lost = trio.cluster.by_id(str(running_worker(trio.carol)))
        trio.cluster.kill(lost)
    finally:
        for pid in engines.values():
            os.kill(pid, signal.SIGCONT)
        app.join(60.0)
    (stream,) = streams
    job = job_view(trio.carol, stream.job)
    assert [a["tokens"] for a in job["attempts"]] == [0, TOKENS]
    assert stream.text == undisturbed and stream.done and stream.mesh["attempts"] == 2
    assert [r["at_token"] for r in stream.reroutes] == ["0"]
    until(lambda: process_gone(engines[lost.id]), 15.0, "the dead daemon's engine ends by itself")


def test_a_worker_that_froze_before_the_offer_costs_no_job(trio: Trio) -> None:
    trio.cluster.freeze(trio.bravo)
    answers = [ask(trio.carol, body(f"frozen {i}", max_tokens=8, exact=False)) for i in range(6)]
    assert [a.status_code for a in answers] == [200] * 6
    assert {a.json()["usage"]["completion_tokens"] for a in answers} == {8}
    workers = {job_view(trio.carol, a.json()["mesh"]["job"])["attempts"][-1]["worker"] for a in answers}
    assert workers == {trio.alpha.id}


def test_by_default_the_answer_goes_on_as_well(trio: Trio) -> None:
    trio.pace(SLOW)
    with Stream(trio.carol, body(max_tokens=TOKENS, exact=False, temperature=0.8, seed=7)) as stream:
        stream.read(pieces=CUT_AFTER_PIECES)
        lost = worker_of(trio, stream)
        seen = stream.text
        trio.cluster.kill(lost)
        trio.pace(FULL, trio.other(lost))
        stream.read()
    assert stream.done and stream.text.startswith(seen) and stream.usage["completion_tokens"] == TOKENS
    first, second = job_view(trio.carol, stream.job)["attempts"]
    assert first["tokens"] + second["tokens"] == TOKENS
