"""How a node looks after its models: rests after failures, room, idleness, progress; what others see of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from meshd.core.engine import EngineLimits, EngineStatus, ModelFile
from meshd.core.errors import BeyondLimits, EngineFailed, ModelInvalid
from meshd.core.ids import ModelDigest
from meshd.node.models import Models
from meshd.node.rests import BASE_S, MAX_S
from meshd.node.service import LOOK_AGAIN_S
from meshd.node.views import Loading
from meshd.testing.fakes import FAKE_DIGEST, FakeEngine, fake_model
from tests.helpers import until
from tests.node.mesh import MODEL, MeshNode, Outcome, Setup, client, mesh_of, run_job, text_of
from tests.node.stores import MemoryModels

pytestmark = pytest.mark.mock_clock
A, B, C = (ModelFile(name, ModelDigest(name * 64), f"/{name}.gguf", 1000) for name in "abc")
IDLE_S = 900.0
EITHER = (MODEL, ModelFile("other", A.digest, "/other.gguf", 1000))


@asynccontextmanager
async def models_of(engine: FakeEngine, *files: ModelFile, idle_s: float = 0.0) -> AsyncIterator[Models]:
    """Models, registered and not loaded yet."""
    models = Models(MemoryModels(files, files), engine, lambda: EngineLimits(1), idle_unload_s=idle_s)
    await models.reload()
    yield models


def state(models: Models, file: ModelFile) -> EngineStatus:
    """What is shown of a model without an engine."""
    (found,) = [s for s in models.status() if s.digest == file.digest]
    return found


async def test_a_model_that_cannot_be_loaded_rests_and_the_engine_is_not_asked_meanwhile() -> None:
    engine = FakeEngine(crashed=True)
    async with models_of(engine, A, B) as models:
        with pytest.raises(EngineFailed, match="crashed"):
            await models.ready(A.digest)
        assert 0 < models.resting()[A.digest] <= BASE_S and B.digest not in models.resting()
        assert (state(models, A).state, state(models, A).reason) == ("resting", "the fake engine has crashed")
        assert "a: the fake engine has crashed" in models.trouble() and models.to_preload() == (B,)
        with pytest.raises(EngineFailed, match="rests"):
            await models.ready(A.digest)
        assert engine.loads == 1
        await trio.sleep_until(models.next_try_s())
        engine.recover()
        assert (await models.ready(A.digest)).digest == A.digest and models.trouble() == ""


async def test_a_bad_file_is_not_tried_again_until_it_changes_or_is_added_again() -> None:
    engine = FakeEngine(invalid={A.digest})
    store = MemoryModels((A, B), (A,))
    models = Models(store, engine, lambda: EngineLimits(1))
    await models.reload()
    with pytest.raises(ModelInvalid):
        await models.ready(A.digest)
    await trio.sleep(10 * MAX_S)
    await models.look_again()
    models.forgive()
    assert state(models, A).state == "resting" and "until the file changes" in state(models, A).reason
    assert models.usable() == (B,)
    with pytest.raises(EngineFailed):
        await models.ready(A.digest)
    assert engine.loads == 1
    store.versions[A.path] = "2"
    await models.look_again()
    with pytest.raises(ModelInvalid):
        await models.ready(A.digest)
    assert engine.loads == 2 and models.usable() == (B,)
    engine.invalid.clear()
    await store.remove(A.name)
    await models.add(A.path, None)
    assert (await models.ready(A.digest)).digest == A.digest and models.usable() == (B, A)


async def test_the_longest_unused_makes_room_and_never_what_is_in_use() -> None:
    engine = FakeEngine(room=2)
    async with models_of(engine, A, B, C) as models:
        async with models.using(A.digest):
            await trio.sleep(1)
        async with models.using(B.digest):
            await trio.sleep(1)
        async with models.using(A.digest):
            await trio.sleep(1)
        async with models.using(C.digest):
            assert {m.digest for m in engine.loaded()} == {A.digest, C.digest}
            assert state(models, B).reason == "unloaded to make room for c"
            async with models.using(A.digest):
                with pytest.raises(BeyondLimits):
                    await models.ready(B.digest)
                assert {m.digest for m in engine.loaded()} == {A.digest, C.digest}
        assert models.resting() == {}, "that others are at work is no failure"
        await models.ready(B.digest)
        assert {m.digest for m in engine.loaded()} == {B.digest, C.digest}


async def test_preloading_takes_the_room_that_is_there_and_unloads_nothing() -> None:
    engine = FakeEngine(room=1)
    async with models_of(engine, A, B) as models:
        assert [await models.preload(f) for f in models.to_preload()] == [True, False]
        assert (state(models, B).state, models.resting()) == ("idle", {}) and models.to_preload() == (A,)
        models.forgive()
        assert models.to_preload() == (A, B), "new limits may have room"


async def test_what_does_not_fit_even_alone_unloads_nothing_and_rests() -> None:
    engine = FakeEngine(room=1)
    async with models_of(engine, A, B) as models:
        await models.ready(A.digest)
        engine.room = 0
        with pytest.raises(BeyondLimits):
            await models.ready(B.digest)
        assert [m.digest for m in engine.loaded()] == [A.digest] and B.digest in models.resting()


async def test_a_model_is_unused_only_when_nobody_uses_it() -> None:
    engine = FakeEngine()
    async with models_of(engine, A, B, idle_s=IDLE_S) as models:
        await models.ready(B.digest)
        async with models.using(A.digest):
            await trio.sleep(2 * IDLE_S)
            assert await models.unload_idle() and [m.digest for m in engine.loaded()] == [A.digest]
        assert state(models, B).state == "idle" and "not used for 900 s" in state(models, B).reason
        await trio.sleep(IDLE_S - 1)
        assert not await models.unload_idle()
        await trio.sleep(1)
        assert await models.unload_idle() and engine.loaded() == ()
        assert models.to_preload() == (), "it comes back when it is needed"


async def test_what_is_no_registered_file_is_never_unloaded() -> None:
    engine = FakeEngine(models=[fake_model("elsewhere", C.digest)], room=2)
    async with models_of(engine, A, B, idle_s=IDLE_S) as models:
        await models.ready(A.digest)
        await models.ready(B.digest)
        assert {m.digest for m in engine.loaded()} == {B.digest, C.digest}
        await trio.sleep(IDLE_S)
        assert await models.unload_idle() and [m.digest for m in engine.loaded()] == [C.digest]
        assert models.status() and all(s.digest != C.digest for s in models.status())


# -- a whole mesh


async def loaded(node: MeshNode, count: int = 1) -> None:
    """The node has that many models loaded."""
    await until(lambda: len(node.engine.loaded()) == count, 60, "loading")


async def test_an_idle_model_is_unloaded_told_to_others_and_back_at_the_next_request() -> None:
    async with mesh_of(client(), Setup("worker", idle_unload_s=60.0)) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        await loaded(worker)
        await loaded(worker, 0)
        await until(lambda: (c := app.view.get(worker.node)) and not c.ad.models[0].ready, 5, "the ad")
        await worker.service.pause()
        await worker.service.resume()
        await trio.sleep(20)
        assert worker.engine.loads == 1, "sharing anew does not load it again"
        job = mesh.job()
        assert (await run_job(app, job)).text == text_of(job) and worker.engine.loads == 2
        assert (await worker.service.status()).engines == (), "the fake engine has no process to show"


async def test_an_engine_that_dies_unused_is_loaded_again_after_a_rest_and_the_mesh_is_told() -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        await loaded(worker)
        worker.engine.die()
        worker.models.engine_died(FAKE_DIGEST, EngineFailed("the engine died (signal 9)\nnoise"))
        assert [(e.state, e.reason) for e in (await worker.service.status()).engines] == [
            ("resting", "the engine died (signal 9)")
        ]
        await until(lambda: (c := app.view.get(worker.node)) and "signal 9" in c.ad.reason, 3, "the ad's reason")
        await loaded(worker)
        await until(lambda: (c := app.view.get(worker.node)) and c.ad.reason == "", 3, "the ad is well again")
        assert (await worker.service.status()).engines == ()


async def test_only_the_model_that_failed_declines_work() -> None:
    async with mesh_of(client(), Setup("worker", models=EITHER)) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        await loaded(worker, 2)
        worker.models.failed(FAKE_DIGEST, EngineFailed("the engine hangs"))
        sick, well = mesh.job(), mesh.job(model="other")
        outcome = Outcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, sick, outcome)
            began_s = trio.current_time()
            assert (await run_job(app, well)).text == text_of(well)
            assert trio.current_time() - began_s < 0.5
        assert outcome.text == text_of(sick), "it waits for the rest to end"
        attempts = {job.model: [a.outcome for a in job.attempts] for job in app.jobs()}
        assert attempts["other"] == ["stop"] and attempts[MODEL.name][0] == "declined: engine_unavailable"


async def test_a_bad_file_is_offered_to_nobody_and_comes_back_when_it_is_another() -> None:
    async with mesh_of(client(), Setup("worker", models=EITHER)) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        await loaded(worker, 2)
        await worker.engine.unload(FAKE_DIGEST)
        worker.engine.invalid.add(FAKE_DIGEST)
        with pytest.raises(ModelInvalid):
            await worker.models.ready(FAKE_DIGEST)

        def offered() -> list[str]:
            candidate = app.view.get(worker.node)
            return sorted(m.name for m in candidate.ad.models) if candidate is not None else []

        await until(lambda: offered() == ["other"], 3, "it is not offered")
        (broken,) = [e for e in (await worker.service.status()).engines if e.digest == FAKE_DIGEST]
        assert broken.state == "resting" and "damaged" in broken.reason
        worker.engine.invalid.clear()
        worker.model_store.versions[MODEL.path] = "2"
        await until(lambda: len(offered()) == 2, LOOK_AGAIN_S + 3, "it is offered again")
        await loaded(worker, 2)


async def test_everybody_who_waits_for_a_model_sees_it_load_and_nobody_takes_the_worker_for_dead() -> None:
    async with mesh_of(client(), Setup("worker", idle_unload_s=1.0), load_s=10.0) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        await until(lambda: worker.engine.loads == 1 and worker.engine.loaded() == (), 30, "it was loaded and unloaded")
        jobs, outcomes = [mesh.job(f"{n}") for n in range(2)], [Outcome(), Outcome()]
        async with trio.open_nursery() as nursery:
            for job, outcome in zip(jobs, outcomes, strict=True):
                nursery.start_soon(run_job, app, job, outcome)
        for job, outcome in zip(jobs, outcomes, strict=True):
            fractions = [e.fraction for e in outcome.events if isinstance(e, Loading)]
            assert fractions == [0.0, 0.2, 0.4, 0.6, 0.8]
            assert outcome.text == text_of(job) and outcome.reroutes == []
            assert all(e.worker_name == "worker" for e in outcome.events if isinstance(e, Loading))
