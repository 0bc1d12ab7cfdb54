"""The models of this machine: registered on disk, loaded into the engine within the owner's limits."""

from __future__ import annotations

from collections.abc import Callable

from meshd.core.engine import EngineLimits, EngineModel, ModelFile
from meshd.core.errors import ModelInvalid, NotFound
from meshd.core.ids import ModelDigest
from meshd.node.ports import Engine
from meshd.node.stores import ModelStore


class Models:
    """What can run here. ``limits`` answers with the owner's limits as they are now."""

    def __init__(self, store: ModelStore, engine: Engine, limits: Callable[[], EngineLimits]) -> None:
        self._store = store
        self._engine = engine
        self._limits = limits
        self.files: tuple[ModelFile, ...] = ()

    async def reload(self) -> None:
        """Read the registered models from disk."""
        self.files = await self._store.list()

    async def ready(self, digest: ModelDigest) -> EngineModel:
        """Load the model of that digest unless it is. Raises ModelInvalid, BeyondLimits, EngineFailed."""
        for model in self._engine.loaded():
            if model.digest == digest:
                return model
        file = next((f for f in self.files if f.digest == digest), None)
        if file is None:
            raise ModelInvalid("this model is not registered here any more")
        return await self._engine.load(file, self._limits())

    async def add(self, path: str, name: str | None) -> ModelFile:
        """Verify and register a file. Raises NotFound, ModelInvalid, AlreadyDone."""
        file = await self._store.add(path, name)
        await self.reload()
        return file

    async def remove(self, name: str) -> None:
        """Unregister a model and unload it; the file stays. Raises NotFound."""
        file = await self._store.remove(name)
        await self.reload()
        if all(f.digest != file.digest for f in self.files):
            await self._engine.unload(file.digest)

    async def preload(self) -> None:
        """Load every registered model, as far as limits allow. Raises what the first failure raises."""
        for file in self.files:
            await self.ready(file.digest)

    def named(self, name: str) -> ModelFile:
        """The registered model of that name; raises NotFound."""
        for file in self.files:
            if file.name == name:
                return file
        raise NotFound(f"no model named {name!r} is registered here", hint="see `mesh model list`")
