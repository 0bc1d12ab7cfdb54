"""Real engine processes that are killed, stopped, starved of memory or loaded slowly, and how they stand beside the
owner's programs."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

import psutil
import pytest
import trio

from meshd.core.engine import EngineLimits, EngineTokens, ModelFile
from meshd.core.errors import BeyondLimits, EngineFailed, MeshError
from meshd.core.ids import ModelDigest
from meshd.engine.config import PoolConfig
from meshd.engine.modesty import OOM_SCORE
from meshd.engine.pool import EnginePool, open_pool
from meshd.engine.watchdog import MIN_BOUND_S
from tests.engine.asking import ONE, SLOW, answer, ask, loaded
from tests.engine.conftest import model_file
from tests.engine.tiny import write_tiny
from tests.helpers import until

pytestmark = pytest.mark.live
PLAIN = PoolConfig(slots=2, nice=0)
TIMEOUT_S = 60.0
LARGE_CONTEXT_TOKENS = 200_000
ADDRESS_SPACE_BYTES = 1_200 * 2**20
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def listening(pool: EnginePool) -> list[tuple[ModelDigest, MeshError]]:
    """What the pool tells about engines that ended by themselves, from now on."""
    told: list[tuple[ModelDigest, MeshError]] = []
    pool.listen(lambda digest, failure: told.append((digest, failure)))
    return told


async def process_of(pool: EnginePool, model: ModelFile) -> int:
    """The pid of the model's process, as soon as there is one."""
    await until(lambda: pool.pid(model.digest), TIMEOUT_S, "an engine process")
    pid = pool.pid(model.digest)
    assert pid is not None
    return pid


async def test_a_kill_while_loading_fails_all_who_wait_and_the_next_try_works(tiny: ModelFile) -> None:
    async with open_pool(PLAIN) as pool:
        told, failures = listening(pool), []

        async def load() -> None:
            with pytest.raises(EngineFailed, match="signal 9: killed from outside") as caught:
                await loaded(pool, tiny)
            failures.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            nursery.start_soon(load)
            os.kill(await process_of(pool, tiny), signal.SIGKILL)
        assert len(failures) == 2 and [digest for digest, _ in told] == [tiny.digest]
        await loaded(pool, tiny)
        assert len((await answer(pool, tiny, ask(max_tokens=5))).tokens) == 5


async def test_an_engine_that_is_killed_unused_is_told_of_and_one_that_is_unloaded_is_not(tiny: ModelFile) -> None:
    async with open_pool(PLAIN) as pool:
        told = listening(pool)
        await loaded(pool, tiny)
        await pool.unload(tiny.digest)
        assert told == []
        await loaded(pool, tiny)
        os.kill(await process_of(pool, tiny), signal.SIGKILL)
        await until(lambda: told, 10, "the word about it")
        assert told[0][0] == tiny.digest and "signal 9" in told[0][1].message and pool.loaded() == ()


async def test_a_stopped_engine_of_a_fast_model_is_replaced_long_before_the_most_it_may_take(tiny: ModelFile) -> None:
    async with open_pool(PLAIN) as pool:
        await loaded(pool, tiny, SLOW)
        tokens = 0
        with trio.fail_after(TIMEOUT_S), pytest.raises(EngineFailed, match="hangs: it stands still"):
            async with pool.generate(tiny.digest, ask(max_tokens=None)) as events:
                async for event in events:
                    tokens += len(event.tokens) if isinstance(event, EngineTokens) else 0
                    if tokens == 20:
                        os.kill(await process_of(pool, tiny), signal.SIGSTOP)
                        stopped_s = trio.current_time()
        assert trio.current_time() - stopped_s < PLAIN.hang_after_s / 2
        await loaded(pool, tiny)
        assert len((await answer(pool, tiny, ask(max_tokens=5))).tokens) == 5


async def test_an_engine_that_was_stopped_for_less_goes_on(tiny: ModelFile) -> None:
    async with open_pool(PLAIN) as pool:
        await loaded(pool, tiny, SLOW)
        tokens = 0
        async with pool.generate(tiny.digest, ask(max_tokens=60)) as events:
            async for event in events:
                tokens += len(event.tokens) if isinstance(event, EngineTokens) else 0
                if tokens == 20:
                    pid = await process_of(pool, tiny)
                    os.kill(pid, signal.SIGSTOP)
                    await trio.sleep(MIN_BOUND_S / 2)
                    os.kill(pid, signal.SIGCONT)
        assert tokens == 60


# -- loading


async def test_loading_is_told_to_everybody_who_waits_and_ends_only_with_the_last_of_them(tiny: ModelFile) -> None:
    async with open_pool(PLAIN) as pool:
        first: list[float] = []
        second: list[float] = []
        scope = trio.CancelScope()

        async def leaves() -> None:
            with scope:
                await pool.load(tiny, ONE, first.append)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaves)
            pid = await process_of(pool, tiny)
            assert [(s.state, s.loaded_fraction) for s in pool.status()] == [("loading", 0.0)]
            nursery.start_soon(pool.load, tiny, ONE, second.append)
            await until(lambda: second, TIMEOUT_S, "the second waits, too")
            scope.cancel()
        assert pool.pid(tiny.digest) == pid and [s.state for s in pool.status()] == ["ready"]
        assert first == [0.0] and second[0] == 0.0 and second == sorted(set(second)) and second[-1] <= 1.0


async def test_progress_comes_from_llama_cpp_itself(tiny: ModelFile) -> None:
    """In a process of its own, where every call of the callback is seen."""
    code = (
        "import sys\n"
        "from meshd.engine.llama import LlamaModel, LoadPlan\n"
        "seen = []\n"
        "LlamaModel(LoadPlan(sys.argv[1], 1, 256, 64, 1, 0, seen.append))\n"
        "print(seen[0], seen[-1], len(seen), seen == sorted(seen))\n"
    )
    done = await trio.run_process([sys.executable, "-c", code, tiny.path], capture_stdout=True, cwd=ROOT)
    first, last, calls, rising = done.stdout.split()
    assert (float(first), float(last), rising) == (0.0, 1.0, b"True") and int(calls) > 3


ROOT = Path(__file__).parents[2]


@linux_only
async def test_too_little_memory_for_a_context_is_beyond_limits_and_no_fault_of_the_file(tmp_path: Path) -> None:
    large = model_file(write_tiny(tmp_path / "large.gguf", context=LARGE_CONTEXT_TOKENS))
    config = PoolConfig(slots=8, context_tokens=LARGE_CONTEXT_TOKENS)
    async with open_pool(config) as pool, trio.open_nursery() as nursery:

        async def load() -> None:
            with pytest.raises(BeyondLimits, match="too little free memory") as caught:
                await pool.load(large, ONE)
            assert not caught.value.crowded

        nursery.start_soon(load)
        limit = (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES)
        resource.prlimit(await process_of(pool, large), resource.RLIMIT_AS, limit)


async def test_room_that_a_loading_model_will_take_is_not_given_away(tiny: ModelFile, tiny_base: ModelFile) -> None:
    async with open_pool(PLAIN) as pool:
        for_one = EngineLimits(threads=1, memory_bytes=160 * 2**20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.load, tiny, for_one)
            await process_of(pool, tiny)
            with pytest.raises(BeyondLimits) as caught:
                await pool.load(tiny_base, for_one)
            assert caught.value.crowded
            nursery.cancel_scope.cancel()


# -- beside the owner's programs


def scheduling(pid: int) -> list[tuple[int, int]]:
    """Niceness and scheduling policy of every thread of the process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        words = (task / "stat").read_text("ascii").rpartition(")")[2].split()
        found.append((int(words[16]), int(words[38])))
    return found


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text("ascii"))


@linux_only
@pytest.mark.parametrize("priority", ["low", "idle"])
async def test_every_thread_that_computes_stands_behind_the_owners_programs(tiny: ModelFile, priority: str) -> None:
    own_nice = os.getpriority(os.PRIO_PROCESS, 0)
    async with open_pool(PoolConfig(slots=2, priority=priority, nice=3)) as pool:
        await loaded(pool, tiny, EngineLimits(threads=2))
        await answer(pool, tiny, ask(max_tokens=20))
        pid = await process_of(pool, tiny)
        expected = (own_nice + 3, os.SCHED_OTHER) if priority == "low" else (own_nice, os.SCHED_IDLE)
        assert scheduling(pid).count(expected) >= 2, "the thread that decodes, and llama.cpp's own"
        io = psutil.Process(pid).ionice()
        wanted = {"low": (psutil.IOPRIO_CLASS_BE, 7), "idle": (psutil.IOPRIO_CLASS_IDLE, 0)}
        assert (io.ioclass, io.value) == wanted[priority]


@linux_only
async def test_the_system_ends_an_engine_before_the_owners_programs_whatever_its_priority(tiny: ModelFile) -> None:
    async with open_pool(PoolConfig(slots=2, priority="normal", nice=3)) as pool:
        await loaded(pool, tiny)
        pid = await process_of(pool, tiny)
        assert oom_score(pid) >= OOM_SCORE
        assert oom_score(os.getpid()) < OOM_SCORE, "not the daemon's"
        assert set(scheduling(pid)) == {(os.getpriority(os.PRIO_PROCESS, 0), os.SCHED_OTHER)}
