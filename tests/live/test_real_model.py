"""With the real model: the answer after a kill is the undisturbed one to the last byte, and memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from meshd.testing.cluster import Node, running_worker, until
from meshd.testing.model import MODEL_NAME, NoModel, real_model
from tests.live.asking import PATIENCE_S, Stream, ask, job_view
from tests.live.asking import body as tiny_body
from tests.live.conftest import Trio, process_gone

pytestmark = pytest.mark.live

TOKENS = 80
KILL_AFTER_PIECES = 25
TOO_LITTLE_BYTES = 160 * 1024 * 1024
PLENTY_BYTES = 4 * 1024**3
PROMPT = "The history of lighthouses begins"


def body(**more: Any) -> dict[str, Any]:
    return {**tiny_body(PROMPT, **more), "model": MODEL_NAME}


@pytest.fixture(scope="session")
def gemma_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model file, its checksum verified."""
    try:
        return real_model(tmp_path_factory.mktemp("gemma"))
    except NoModel as error:
        pytest.skip(str(error))


@pytest.fixture
def gemma(trio: Trio, gemma_path: Path) -> Iterator[Trio]:
    """The mesh, with the real model on both workers; without it afterwards."""
    for worker in trio.workers:
        trio.cluster.add_model(worker, gemma_path)
    trio.cluster.wait_for_workers(trio.carol, 2)
    yield trio
    for worker in trio.workers:
        if not worker.running:
            trio.cluster.up(worker)
        worker.post("/mesh/v1/share", {"memory_bytes": PLENTY_BYTES})
        trio.cluster.mesh(worker, "model", "rm", MODEL_NAME)


def complete(trio: Trio, *, kill: bool) -> tuple[str, str, int, Node | None]:
    """An exact answer by the unmodified openai client: (text, finish, tokens, the worker that was killed)."""
    text, finish, tokens, lost = "", "", 0, None
    with openai.OpenAI(
        base_url=f"{trio.carol.api_url}/v1", api_key=trio.carol.token, max_retries=0, timeout=PATIENCE_S
    ) as app:
        raw = app.completions.with_raw_response.create(
            model=MODEL_NAME,
            prompt=PROMPT,
            temperature=0,
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"mesh": {"exact": True}},
        )
        pieces = 0
        for chunk in raw.parse():
            for choice in chunk.choices:
                text += choice.text
                pieces += bool(choice.text)
                finish = choice.finish_reason or finish
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
            if kill and lost is None and pieces >= KILL_AFTER_PIECES:
                running = until(lambda: running_worker(trio.carol, raw.headers["X-Mesh-Job"]), 20.0, "it has a worker")
                lost = trio.cluster.by_id(running)
                trio.cluster.kill(lost)
    return text, finish, tokens, lost


def test_the_openai_client_gets_the_undisturbed_answer_though_its_worker_is_killed(gemma: Trio) -> None:
    whole, finish, tokens, _ = complete(gemma, kill=False)
    broken, broken_finish, broken_tokens, lost = complete(gemma, kill=True)
    assert lost is not None and lost.process is not None and lost.process.returncode == -9
    assert broken == whole and len(whole) > KILL_AFTER_PIECES
    assert (broken_finish, broken_tokens) == (finish, tokens)
    job = gemma.carol.jobs()[0]
    first, second = job_view(gemma.carol, job["id"])["attempts"]
    assert first["worker"] == lost.id != second["worker"]
    assert first["tokens"] + second["tokens"] == tokens
    print(f"gap: {second['gap_ms']:.0f} ms, cut at token {first['tokens']} of {tokens}")


def engine(worker: Node) -> dict[str, Any] | None:
    """The real model's engine on the worker."""
    return next((e for e in worker.status()["engines"] if e["model"] == MODEL_NAME), None)


def test_an_engine_over_its_memory_is_ended_and_the_answer_goes_on_elsewhere(gemma: Trio) -> None:
    trio = gemma
    whole = ask(trio.carol, body(max_tokens=120)).json()["choices"][0]["text"]
    with Stream(trio.carol, body(max_tokens=120)) as stream:
        stream.read(pieces=20)
        lost = trio.cluster.by_id(str(running_worker(trio.carol, stream.job)))
        pid = int((engine(lost) or {})["pid"])
        lost.post("/mesh/v1/share", {"memory_bytes": TOO_LITTLE_BYTES})
        stream.read()
    assert stream.done and stream.text == whole and stream.usage["completion_tokens"] == 120
    assert [r["reason"] for r in stream.reroutes] == ["engine_failed"]
    until(lambda: process_gone(pid), 15.0, "the engine over its limit is gone")
    assert lost.running and "the limit is 160 MiB" in lost.log.read_text("utf-8")

    # Alone it cannot do it either, and says so; the daemon lives, and with enough memory it works again.
    trio.other(lost).post("/mesh/v1/pause")
    refused = ask(trio.carol, body(max_tokens=4))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "mesh_no_worker")
    lost.post("/mesh/v1/share", {"memory_bytes": PLENTY_BYTES})
    until(lambda: ask(trio.carol, body(max_tokens=4)).status_code == 200, 60.0, "it works with enough memory")
