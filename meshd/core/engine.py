"""The words of local inference: what an engine is given, what it reports. Spoken by the engine and by the node."""

from __future__ import annotations

from dataclasses import dataclass

from meshd.core.ad import ABILITIES_OF_A_FILE, Ability, DeviceKind, Gpu, Rate
from meshd.core.classes import DataClass
from meshd.core.generation import FinishReason, Opening, Token
from meshd.core.ids import ModelDigest


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A verified model file on this machine."""

    name: str
    digest: ModelDigest
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class EngineModel:
    """What the engine learnt about a model when it loaded it."""

    name: str
    digest: ModelDigest
    context_tokens: int
    slots: int
    has_chat_template: bool
    gpu_layers: int
    prefill_tokens_per_s: float
    generation_tokens_per_s: float
    rates: tuple[Rate, ...] = ()
    abilities: tuple[Ability, ...] = ABILITIES_OF_A_FILE
    device: DeviceKind = DeviceKind.CPU
    class_max: DataClass = DataClass.RESTRICTED


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The owner's limits on an engine, enforced while it runs."""

    threads: int
    duty: float = 1.0
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class EngineLoading:
    """The model is being loaded for this request: so much of it is there (0 to 1). Comes before EngineStarted."""

    fraction: float


@dataclass(frozen=True, slots=True)
class EngineStarted:
    """The prompt is tokenised and admitted to a slot."""

    opening: Opening


@dataclass(frozen=True, slots=True)
class EngineTokens:
    """Tokens in order, without a gap."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class EngineFinished:
    """The generation is complete. ``prompt_tokens``: told only here by an engine that did not know it at the start."""

    reason: FinishReason
    prompt_tokens: int | None = None


EngineEvent = EngineLoading | EngineStarted | EngineTokens | EngineFinished


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One engine, for people who look after the machine. ``state``: ready, loading, resting (it failed and waits
    before the next try) or idle (not loaded, loads on demand). ``reason`` says why, in words."""

    model: str
    digest: ModelDigest
    pid: int
    rss_bytes: int
    slots: int
    slots_free: int
    state: str
    reason: str = ""
    loaded_fraction: float = 1.0


@dataclass(frozen=True, slots=True)
class MachineInfo:
    """What this machine has, as psutil and NVML report it."""

    cpu_threads: int
    memory_bytes: int
    memory_available_bytes: int
    gpus: tuple[Gpu, ...]
