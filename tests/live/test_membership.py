"""Who is there: the dead are noticed in time, and the mesh needs none of its nodes, the first one included."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from meshd.testing.cluster import Node, alive_peers, until
from tests.live.asking import ask, body
from tests.live.conftest import Trio

pytestmark = pytest.mark.live

SUSPECT_S = 2.0
GONE_S = 15.0
LOOK_S = 5.0
"""What a busy machine may add: daemons that wait for their turn, and two asked over HTTP. Who is not suspected stays
alive until its last ad expires, after 10 s, and who is not forgotten stays for ever. `tests/node` holds the times
themselves, in virtual time."""


def known(node: Node) -> set[str]:
    """Ids of all peers in the node's view, suspects included."""
    return {str(peer["id"]) for peer in node.status()["peers"]}


def seconds_until_all(nodes: Iterable[Node], since_s: float, limit_s: float, what: str, lost: Node) -> float:
    """How long after ``since_s`` it took until no node had ``lost`` in its view as ``what``."""
    look = alive_peers if what == "alive" else known
    left = since_s + limit_s + LOOK_S - time.monotonic()
    until(lambda: all(lost.id not in look(node) for node in nodes), left, f"{lost.name} is not {what} any more")
    return time.monotonic() - since_s


def works(node: Node, worker: Node) -> bool:
    """Whether ``node``'s app gets an answer from ``worker``."""
    answer = ask(node, body(max_tokens=4))
    return answer.status_code == 200 and node.jobs()[0]["attempts"][-1]["worker"] == worker.id


def test_a_frozen_node_is_suspect_within_2_s_and_gone_within_15(trio: Trio) -> None:
    others = (trio.alpha, trio.carol)
    since_s = time.monotonic()
    trio.cluster.freeze(trio.bravo)
    suspect_s = seconds_until_all(others, since_s, SUSPECT_S, "alive", trio.bravo)
    gone_s = seconds_until_all(others, since_s, GONE_S, "known", trio.bravo)
    print(f"suspect after {suspect_s * 1000:.0f} ms, gone after {gone_s * 1000:.0f} ms")


def test_the_mesh_outlives_its_first_node_and_takes_it_back(trio: Trio) -> None:
    others = (trio.bravo, trio.carol)
    since_s = time.monotonic()
    trio.cluster.kill(trio.alpha)
    suspect_s = seconds_until_all(others, since_s, SUSPECT_S, "alive", trio.alpha)
    assert works(trio.carol, trio.bravo)

    # Whoever restarts finds the one that stayed, without the first node.
    for again, stays in (others, others[::-1]):
        trio.cluster.down(again)
        trio.cluster.up(again)
        until(lambda again=again, stays=stays: stays.id in alive_peers(again), 30.0, "it found its mesh")  # type: ignore[misc]
    trio.cluster.wait_for_workers(trio.carol, 1, "tiny")
    assert works(trio.carol, trio.bravo)
    gone_s = seconds_until_all(others, since_s, max(GONE_S, time.monotonic() - since_s), "known", trio.alpha)
    print(f"killed: suspect after {suspect_s * 1000:.0f} ms, gone after at most {gone_s * 1000:.0f} ms")

    # The founder has no bootstrap address: what it remembers of those who once dialled it must do.
    trio.cluster.up(trio.alpha)
    trio.cluster.wait_to_meet()
