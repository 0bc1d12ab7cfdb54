"""The models of this machine: registered on disk, loaded into the engine within the owner's limits.

A model is loaded when somebody needs it (or ahead of that, when the owner shares), stays while it is used, and goes
when it was not used for a while, or when another needs its memory. One that failed rests before the next try
(`node.rests`). What is in use is never unloaded.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from meshd.core.engine import EngineLimits, EngineModel, EngineStatus, ModelFile
from meshd.core.errors import BeyondLimits, EngineFailed, MeshError, ModelInvalid, NotFound
from meshd.core.ids import ModelDigest
from meshd.node.ports import Engine
from meshd.node.rests import Rests, first_line
from meshd.node.stores import ModelStore

log = logging.getLogger("meshd.node.models")

MAX_REASON_CHARS = 160
"""What an ad, and a line of a terminal, have room for."""


def _nobody(fraction: float) -> None:
    """Hears how far loading is, and tells nobody."""


class Models:
    """What can run here. ``limits`` answers with the owner's limits as they are now; ``idle_unload_s``: a model that
    was not used for so long is unloaded (0: never)."""

    def __init__(
        self,
        store: ModelStore,
        engine: Engine,
        limits: Callable[[], EngineLimits],
        *,
        idle_unload_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._store = store
        self._engine = engine
        self._limits = limits
        self._idle_unload_s = idle_unload_s
        self._rests = Rests(seed)
        self._users: Counter[ModelDigest] = Counter()
        self._used_at_s: dict[ModelDigest, float] = {}
        self._set_aside: dict[ModelDigest, str] = {}
        self._no_room: dict[ModelDigest, str] = {}
        self._changed: Callable[[], None] = lambda: None
        self.files: tuple[ModelFile, ...] = ()

    def listen(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever a model begins to rest, or is unloaded to make room."""
        self._changed = changed

    async def reload(self) -> None:
        """Read the registered models from disk."""
        self.files = await self._store.list()

    # -- what is there

    def usable(self) -> tuple[ModelFile, ...]:
        """The registered models, without those whose file is bad: nothing of the kind is offered to anybody."""
        broken = self._rests.broken()
        return tuple(file for file in self.files if file.digest not in broken)

    def resting(self) -> dict[ModelDigest, float]:
        """The models that are not tried now, and for how many seconds more."""
        now_s = trio.current_time()
        left_s = {file.digest: self._rests.left_s(file.digest, now_s) for file in self.files}
        return {digest: left for digest, left in left_s.items() if left > 0}

    def trouble(self) -> str:
        """What is wrong with the models here, in words; empty when nothing is."""
        resting = self.resting()
        words = [f"{f.name}: {self._rests.reason(f.digest)}" for f in self.files if f.digest in resting]
        return _printable("; ".join(words))[:MAX_REASON_CHARS]

    def status(self) -> tuple[EngineStatus, ...]:
        """Every engine, then every registered model without one, and why it has none."""
        engines = self._engine.status()
        present = {s.digest for s in engines} | {m.digest for m in self._engine.loaded()}
        rest = {f.digest: f for f in self.files if f.digest not in present}
        return (*engines, *(self._absent(file) for file in rest.values()))

    def _absent(self, file: ModelFile) -> EngineStatus:
        left_s = self._rests.left_s(file.digest, trio.current_time())
        reason = self._rests.reason(file.digest)
        state = "resting" if left_s > 0 else "idle"
        if math.isinf(left_s):
            reason = f"{reason} (not tried again until the file changes)"
        elif not reason:
            reason = (self._set_aside | self._no_room).get(file.digest, "loads when it is needed")
        return EngineStatus(file.name, file.digest, 0, 0, 0, 0, state, _printable(reason), 0.0)

    # -- loading

    @asynccontextmanager
    async def using(self, digest: ModelDigest, progress: Callable[[float], None] = _nobody) -> AsyncIterator[None]:
        """Have the model loaded, and kept, while in the context. Raises what `ready` raises."""
        self._users[digest] += 1
        try:
            await self.ready(digest, progress)
            yield
        finally:
            self._users[digest] -= 1
            self._used_at_s[digest] = trio.current_time()

    async def ready(
        self, digest: ModelDigest, progress: Callable[[float], None] = _nobody, *, make_room: bool = True
    ) -> EngineModel:
        """Load the model of that digest unless it is loaded; ``progress`` hears how far it is. ``make_room``: unload
        what is not in use, the longest unused first, as far as it takes.

        Raises ModelInvalid, BeyondLimits, EngineFailed; also EngineFailed while the model rests after a failure.
        """
        for model in self._engine.loaded():
            if model.digest == digest:
                return model
        file = next((f for f in self.files if f.digest == digest), None)
        if file is None:
            raise ModelInvalid("this model is not registered here any more")
        if self._rests.left_s(digest, trio.current_time()) > 0:
            raise EngineFailed(f"it failed a moment ago and rests: {self._rests.reason(digest)}")
        try:
            model = await self._load(file, progress, make_room)
        except (ModelInvalid, EngineFailed, BeyondLimits) as e:
            if not (isinstance(e, BeyondLimits) and e.crowded):  # others at work are no fault of this one
                self.failed(digest, e, await self._store.version(file))
            raise
        self._want(digest)
        self._used_at_s[digest] = trio.current_time()
        self._rests.loaded(digest, trio.current_time())
        return model

    async def _load(self, file: ModelFile, progress: Callable[[float], None], make_room: bool) -> EngineModel:
        while True:
            try:
                return await self._engine.load(file, self._limits(), progress)
            except BeyondLimits as e:
                spare = self._longest_unused(but=file.digest) if make_room and e.crowded else None
                if spare is None:
                    raise
                log.info("%s makes room for %s", spare.name, file.name)
                await self._put_aside(spare, f"unloaded to make room for {file.name}")

    def _want(self, digest: ModelDigest) -> None:
        self._set_aside.pop(digest, None)
        self._no_room.pop(digest, None)

    def _loaded_files(self) -> list[EngineModel]:
        """What is loaded of the registered files. An engine may have more, which costs this machine no memory."""
        registered = {f.digest for f in self.files}
        return [m for m in self._engine.loaded() if m.digest in registered]

    def _longest_unused(self, but: ModelDigest) -> EngineModel | None:
        """The loaded model that is not in use and was not for the longest time."""
        spare = [m for m in self._loaded_files() if m.digest != but and not self._users[m.digest]]
        return min(spare, key=lambda m: self._used_at_s.get(m.digest, -math.inf), default=None)

    def failed(self, digest: ModelDigest, error: MeshError, version: str = "") -> None:
        """Loading failed, or the engine died: the model rests before the next try."""
        if self._rests.failed(digest, error, trio.current_time(), version):
            log.warning("the engine of %s failed: %s", self._name(digest), error.message)
            self._changed()

    def engine_died(self, digest: ModelDigest, error: MeshError) -> None:
        """The engine's own word that it ended, whether anybody used it or not. What is wrong with a file, or too
        large, is told to whoever asked for it."""
        if isinstance(error, EngineFailed) and any(f.digest == digest for f in self.files):
            self.failed(digest, error)

    def attempt_failed(self, digest: ModelDigest, error: MeshError) -> None:
        """An attempt on the model failed. When its engine is gone, that was the cause; else the request was."""
        if all(m.digest != digest for m in self._engine.loaded()):
            self.engine_died(digest, error)

    def _name(self, digest: ModelDigest) -> str:
        return next((f.name for f in self.files if f.digest == digest), digest)

    # -- without being asked

    def to_preload(self) -> tuple[ModelFile, ...]:
        """The models to load ahead of any request: neither resting nor put aside. One that was unloaded for want of
        use or of room comes back when it is needed."""
        resting = self.resting()
        left_out = resting.keys() | self._set_aside.keys() | self._no_room.keys()
        return tuple(f for f in self.files if f.digest not in left_out)

    async def preload(self, file: ModelFile) -> bool:
        """Load a model nobody asked for, if there is room beside the others. Whether it is loaded now."""
        try:
            await self.ready(file.digest, make_room=False)
        except BeyondLimits as e:
            if e.crowded:
                self._no_room[file.digest] = f"loads when it is needed: {first_line(e.message)}"
            return False
        except (ModelInvalid, EngineFailed):
            return False
        return True

    def next_try_s(self) -> float:
        """When the next rest ends (trio's clock); infinity when none does."""
        return self._rests.next_s(trio.current_time())

    def forgive(self) -> None:
        """The owner changed the limits: what failed under the old ones, or found no room, may be tried at once."""
        self._rests.forgive()
        self._no_room.clear()

    async def look_again(self) -> None:
        """Let bad files that are other files by now be tried again."""
        for digest, version in self._rests.broken().items():
            file = next((f for f in self.files if f.digest == digest), None)
            if file is None or await self._store.version(file) != version:
                self._rests.forget(digest)

    def next_idle_s(self) -> float:
        """When the next model will have been unused for too long (trio's clock), if nothing happens."""
        if self._idle_unload_s <= 0:
            return math.inf
        now_s = trio.current_time()
        since_s = [self._used_at_s.setdefault(m.digest, now_s) for m in self._loaded_files()]
        return min(since_s, default=now_s) + self._idle_unload_s

    async def unload_idle(self) -> bool:
        """Unload what was not used for too long; whether there was any."""
        found = False
        for model in self._loaded_files():
            if self._users[model.digest]:
                self._used_at_s[model.digest] = trio.current_time()
            elif self._idle_unload_s > 0 and self._unused_s(model.digest) >= self._idle_unload_s:
                found = True
                log.info("%s was not used for %.0f s: unloaded", model.name, self._idle_unload_s)
                await self._put_aside(model, f"not used for {self._idle_unload_s:g} s: loads when it is needed")
        return found

    def _unused_s(self, digest: ModelDigest) -> float:
        return trio.current_time() - self._used_at_s.setdefault(digest, trio.current_time())

    async def _put_aside(self, model: EngineModel, reason: str) -> None:
        self._set_aside[model.digest] = reason
        await self._engine.unload(model.digest)
        self._changed()

    # -- the owner's will

    async def add(self, path: str, name: str | None) -> ModelFile:
        """Verify and register a file; a bad one that is added again is tried again. Raises NotFound, ModelInvalid,
        AlreadyDone."""
        file = await self._store.add(path, name)
        self._rests.forget(file.digest)
        self._want(file.digest)
        await self.reload()
        return file

    async def remove(self, name: str) -> ModelFile:
        """Unregister a model and unload it; the file stays. Raises NotFound."""
        file = await self._store.remove(name)
        await self.reload()
        if all(f.digest != file.digest for f in self.files):
            await self._engine.unload(file.digest)
            self._rests.forget(file.digest)
            self._used_at_s.pop(file.digest, None)
        return file

    def is_file(self, digest: ModelDigest) -> bool:
        """Whether that model is a registered file, which must be loaded before it is used."""
        return any(file.digest == digest for file in self.files)

    def named(self, name: str) -> ModelFile:
        """The registered model of that name; raises NotFound."""
        for file in self.files:
            if file.name == name:
                return file
        raise NotFound(f"no model named {name!r} is registered here", hint="see `mesh model list`")


def _printable(text: str) -> str:
    """``text`` as an ad may carry it: nothing in it moves a cursor."""
    return "".join(c if c.isprintable() else " " for c in text)
