"""The engines of this machine, one process per model. Implements the node's Engine port.

A process that died is forgotten, but for what `listen` tells; the next ``load`` of its model starts a new one. How
long to wait before that, and which model makes room for which, is the node's business.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import psutil
import trio

from meshd.core.engine import EngineEvent, EngineLimits, EngineModel, EngineStatus, ModelFile
from meshd.core.errors import BeyondLimits, EngineFailed, MeshError
from meshd.core.generation import Token
from meshd.core.ids import ModelDigest
from meshd.core.job import Work
from meshd.engine.config import PoolConfig
from meshd.engine.gguf import GgufInfo, inspect
from meshd.engine.process import EngineProcess, Progress

_MEMORY_INTERVAL_S: Final = 0.5
_OVERHEAD_BYTES: Final = 100 * 1024 * 1024
"""Python, llama.cpp and its compute buffers; measured 60 to 90 MiB beside a small model."""


@asynccontextmanager
async def open_pool(config: PoolConfig | None = None) -> AsyncIterator[EnginePool]:
    """A pool without models. On leaving, every engine process is killed and reaped."""
    async with trio.open_nursery() as nursery:
        pool = EnginePool(config or PoolConfig(), nursery)
        nursery.start_soon(pool.guard_memory)
        try:
            yield pool
        finally:
            nursery.cancel_scope.cancel()


class EnginePool:
    """Use ``open_pool``. All of its methods belong to one trio run."""

    def __init__(self, config: PoolConfig, nursery: trio.Nursery) -> None:
        self._config = config
        self._nursery = nursery
        self._processes: dict[ModelDigest, EngineProcess] = {}
        self._loading = trio.Lock()
        self._limits: EngineLimits | None = None
        self._needs: dict[ModelDigest, int] = {}
        self._failed: Callable[[ModelDigest, MeshError], None] = lambda digest, failure: None

    def listen(self, failed: Callable[[ModelDigest, MeshError], None]) -> None:
        """Call ``failed`` whenever an engine ends that nobody ended: it crashed, hung, was killed, took too much, or
        could not load its model. Once a process, and also when nothing was running on it."""
        self._failed = failed

    def loaded(self) -> tuple[EngineModel, ...]:
        """The models that can be used now, with their rates as measured last."""
        return tuple(p.info for p in self._processes.values() if p.alive and p.info is not None)

    def slots_free(self, digest: ModelDigest) -> int:
        """How many more generations of that model may start now; 0 when it is not loaded."""
        process = self._processes.get(digest)
        return process.slots_free if process is not None else 0

    def pid(self, digest: ModelDigest) -> int | None:
        """The engine process of that model, for people who look after the machine; None when there is none."""
        process = self._processes.get(digest)
        return process.pid if process is not None else None

    def status(self) -> tuple[EngineStatus, ...]:
        """Every engine process, ready or still loading."""
        return tuple(
            EngineStatus(
                p.model.name,
                p.model.digest,
                p.pid or 0,
                p.rss_bytes(),
                p.info.slots if p.info else self._config.slots,
                p.slots_free,
                "ready" if p.info else "loading",
                loaded_fraction=1.0 if p.info else p.fraction,
            )
            for p in self._processes.values()
        )

    async def load(self, model: ModelFile, limits: EngineLimits, progress: Progress | None = None) -> EngineModel:
        """Load (or keep) the model, telling ``progress`` how far it is. ``limits`` hold for every engine of the pool
        from now on.

        Raises ModelInvalid (the file is bad), BeyondLimits (it would not fit), EngineFailed (it died or hung while
        loading). Cancelled, it leaves nothing behind, unless somebody else waits for the same model.
        """
        async with self._loading:
            await self.limit(limits)
            process = self._processes.get(model.digest)
            if process is not None and process.failure is not None:
                await process.gone.wait()
                process = None
            if process is None:
                process = await self._start(model, limits)
        return await process.loaded(progress)

    async def _start(self, model: ModelFile, limits: EngineLimits) -> EngineProcess:
        info = await trio.to_thread.run_sync(partial(inspect, model.path))
        self._needs[model.digest] = self._check_memory(info, limits)
        process = self._processes[model.digest] = EngineProcess(model, limits, self._config)
        self._nursery.start_soon(self._live, process)
        return process

    async def _live(self, process: EngineProcess) -> None:
        await process.run()
        digest = process.model.digest
        if self._processes.get(digest) is process:
            del self._processes[digest]
        if process.failure is not None and not process.wanted_end:
            self._failed(digest, process.failure)

    def _check_memory(self, info: GgufInfo, limits: EngineLimits) -> int:
        """Bytes that the model will take; raises BeyondLimits. Of one that is loading counts what it will take, too:
        two that start together must not both find the room that is left."""
        need_bytes = estimate_bytes(info, self._config)
        used_bytes = sum(self._taken_bytes(process) for process in self._processes.values())
        ceiling_bytes = psutil.virtual_memory().total
        if limits.memory_bytes is not None:
            ceiling_bytes = min(ceiling_bytes, limits.memory_bytes)
        if used_bytes + need_bytes > ceiling_bytes:
            raise BeyondLimits(
                f"{info.name} needs about {_mib(need_bytes)} MiB, the limit is {_mib(ceiling_bytes)} MiB"
                + (f" and {_mib(used_bytes)} MiB are in use" if used_bytes else ""),
                hint="raise the memory limit, or take a smaller model, fewer slots or a shorter context",
                crowded=need_bytes <= ceiling_bytes,
            )
        return need_bytes

    def _taken_bytes(self, process: EngineProcess) -> int:
        rss_bytes = process.rss_bytes()
        return rss_bytes if process.info is not None else max(rss_bytes, self._needs[process.model.digest])

    async def unload(self, digest: ModelDigest) -> None:
        """End the model's engine; its generations end with EngineFailed. Returns when the process is gone."""
        process = self._processes.get(digest)
        if process is not None:
            process.end("the model was unloaded")
            await process.gone.wait()

    async def limit(self, limits: EngineLimits) -> None:
        """Put new limits on every running engine: threads and duty from its next decode step, memory at once."""
        if limits == self._limits:
            return
        self._limits = limits
        for process in self._processes.values():
            process.limit(limits)
        self.enforce_memory()

    async def guard_memory(self) -> None:
        """Watch the memory ceiling until cancelled."""
        while True:
            await trio.sleep(_MEMORY_INTERVAL_S)
            self.enforce_memory()

    def enforce_memory(self) -> None:
        """Kill the largest engine when all together are over the ceiling. Never raises."""
        ceiling_bytes = self._limits.memory_bytes if self._limits is not None else None
        sizes = {digest: process.rss_bytes() for digest, process in self._processes.items()}
        total_bytes = sum(sizes.values())
        for digest, process in self._processes.items():
            process.room(max(ceiling_bytes - total_bytes + sizes[digest], 1) if ceiling_bytes is not None else 0)
        if ceiling_bytes is None or not sizes:
            return
        if total_bytes > ceiling_bytes:
            largest = max(sizes, key=lambda digest: sizes[digest])
            text = f"the engines took {_mib(total_bytes)} MiB, the limit is {_mib(ceiling_bytes)} MiB"
            self._processes[largest].fail(EngineFailed(text))

    @asynccontextmanager
    async def generate(
        self, digest: ModelDigest, work: Work, delivered: Sequence[Token] = (), owner: str = ""
    ) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """Do one piece of work, going on after ``delivered``; the first event is EngineStarted, the last
        EngineFinished. Leaving the context frees the slot within one decode step.

        Raises on entering: BadInput, ContextOverflow (the request's fault), Overloaded (no slot), EngineFailed (the
        model is not loaded, or the engine died). Iterating raises EngineFailed after the tokens that came before.
        """
        process = self._processes.get(digest)
        if process is None:
            raise EngineFailed("the model is not loaded")
        events = process.start(work, delivered, owner)
        try:
            await events.admitted()
            yield events
        finally:
            process.cancel(events)


def estimate_bytes(info: GgufInfo, config: PoolConfig) -> int:
    """Memory an engine with that model will take: the file, the cache of all slots, and overhead."""
    context_tokens = min(config.context_tokens, info.context_tokens or config.context_tokens)
    return info.size_bytes + info.cache_bytes_per_token * context_tokens * config.slots + _OVERHEAD_BYTES


def _mib(size_bytes: int) -> int:
    return size_bytes // (1024 * 1024)
