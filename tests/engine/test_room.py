"""What comes beside the shared cache is refused where it would pass the owner's ceiling: the pool would kill for it."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.core.generation import Generation, Prompt, Sampling
from meshd.core.job import Embedding
from tests.engine.bench import Bench
from tests.engine.tiny import write_tiny

pytestmark = pytest.mark.live

EXACT = Generation(Prompt("hello"), Sampling(temperature=0), 3, exact=True)
SHARED = Generation(Prompt("hello"), Sampling(temperature=0), 3)
VECTORS = Embedding((Prompt("hello"),))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(write_tiny(tmp_path_factory.mktemp("room") / "room.gguf"), context_tokens=256)


def said(bench: Bench, id: int, work: Any) -> list[str]:
    """The kinds of messages, with the code of a refusal."""
    messages = bench.works.start(id, work, [], 0.0)
    while bench.works.busy:
        feeds = bench.works.decoding.next_step()
        messages += bench.works.decoding.step(feeds) if feeds else []
        messages += bench.works.step_aside() or []
    return [m[2] if m[0] == "refused" else m[0] for m in messages]


def test_no_room_costs_the_request_and_nothing_else_and_room_may_come(bench: Bench) -> None:
    bench.model.memory_bytes = 1
    assert said(bench, 1, EXACT) == ["beyond_limits"]
    assert said(bench, 2, VECTORS)[-1] == "beyond_limits"
    assert said(bench, 3, SHARED)[-1] == "finished", "what needs nothing more goes on"
    bench.model.memory_bytes = 0
    assert said(bench, 4, EXACT)[-1] == "finished"
    assert said(bench, 5, VECTORS)[-1] == "finished"
    bench.model.memory_bytes = 1
    assert said(bench, 6, EXACT)[-1] == "finished", "what is there stays"
