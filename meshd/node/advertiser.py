"""Makes this node's ad: what it offers now, numbered, expiring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from meshd.core import limits
from meshd.core.ad import Ad, DeviceKind, ModelOffer
from meshd.core.engine import EngineModel, MachineInfo, ModelFile
from meshd.core.ids import NodeId
from meshd.node.guest import Guest
from meshd.node.ports import Engine, Probe

LOOK_INTERVAL_S = 5.0
"""How old the GPUs' free memory in an ad may be."""


@dataclass(frozen=True, slots=True)
class Self:
    """What does not change about this node while it runs. ``boot`` counts its starts."""

    node: NodeId
    name: str
    boot: int
    software: str
    default_context_tokens: int
    slots: int


class Advertiser:
    """Builds ads; every one newer than the last."""

    def __init__(
        self,
        me: Self,
        guest: Guest,
        engine: Engine,
        probe: Probe,
        running: Callable[[], int],
        wall: Callable[[], float],
        addresses: Callable[[], tuple[str, ...]],
        trouble: Callable[[], str] = lambda: "",
    ) -> None:
        self._me = me
        self._guest = guest
        self._engine = engine
        self._probe = probe
        self._running = running
        self._wall = wall
        self._addresses = addresses
        self._trouble = trouble
        self._seq = 0
        self._models: tuple[ModelFile, ...] = ()
        self._machine: MachineInfo | None = None
        self._looked_at_s = 0.0

    def set_models(self, models: tuple[ModelFile, ...]) -> None:
        """The registered models from now on."""
        self._models = models[: limits.MAX_MODELS_PER_AD]

    def _look(self, now_s: float) -> MachineInfo:
        """The machine, looked at now and then: a few milliseconds, so not on every ad that a state change causes."""
        if self._machine is None or not 0 <= now_s - self._looked_at_s < LOOK_INTERVAL_S:
            self._machine, self._looked_at_s = self._probe.machine(), now_s
        return self._machine

    def slots_free(self) -> int:
        """Attempts that this node could take now."""
        return max(0, self._me.slots - self._running())

    def ad(self) -> Ad:
        """A new ad of what is true now."""
        self._seq += 1
        now_s = self._wall()
        machine = self._look(now_s)
        free = self.slots_free()
        state, reason = self._guest.state(free)
        return Ad(
            node=self._me.node,
            boot=self._me.boot,
            seq=self._seq,
            issued_at=now_s,
            expires_at=now_s + limits.AD_TTL_S,
            name=self._me.name,
            addresses=self._addresses()[:16],
            cpu_threads=machine.cpu_threads,
            memory_bytes=machine.memory_bytes,
            gpus=machine.gpus[: limits.MAX_GPUS_PER_AD],
            models=self.offers(),
            slots=self._me.slots,
            slots_free=free,
            state=state,
            reason=reason or self._trouble(),
            software=self._me.software,
        )

    def offers(self) -> tuple[ModelOffer, ...]:
        """The registered models, with what the engine measured of those loaded; upstreams while they are well."""
        loaded = {m.digest: m for m in self._engine.loaded()}
        files = [self._offer(f, loaded.get(f.digest)) for f in self._models]
        behind = [_offer_of(m.name, m) for m in loaded.values() if m.device is DeviceKind.UPSTREAM]
        return tuple([*files, *behind][: limits.MAX_MODELS_PER_AD])

    def offer(self, file: ModelFile) -> ModelOffer:
        """What is offered of one registered model."""
        return self._offer(file, next((m for m in self._engine.loaded() if m.digest == file.digest), None))

    def _offer(self, file: ModelFile, loaded: EngineModel | None) -> ModelOffer:
        if loaded is None:
            return ModelOffer(file.name, file.digest, self._me.default_context_tokens)
        return _offer_of(file.name, loaded)


def _offer_of(name: str, loaded: EngineModel) -> ModelOffer:
    return ModelOffer(
        name,
        loaded.digest,
        loaded.context_tokens,
        loaded.prefill_tokens_per_s,
        loaded.generation_tokens_per_s,
        ready=True,
        rates=loaded.rates,
        abilities=loaded.abilities,
        device=loaded.device,
        class_max=loaded.class_max,
    )
