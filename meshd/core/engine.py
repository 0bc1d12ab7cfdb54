"""The words of local inference: what an engine is given, what it reports. Spoken by the engine and by the node."""

from __future__ import annotations

from dataclasses import dataclass

from meshd.core.ad import Gpu
from meshd.core.generation import FinishReason, Token
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


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The owner's limits on an engine, enforced while it runs."""

    threads: int
    duty: float = 1.0
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class EngineStarted:
    """The prompt is tokenised and admitted to a slot. ``stop``: strings the model's plain template adds to the
    request's own stop list (empty where the model brings its own template)."""

    prompt_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineTokens:
    """Tokens in order, without a gap."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class EngineFinished:
    """The generation is complete."""

    reason: FinishReason


EngineEvent = EngineStarted | EngineTokens | EngineFinished


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One engine process, for people who look after the machine. ``state``: ready or loading."""

    model: str
    digest: ModelDigest
    pid: int
    rss_bytes: int
    slots: int
    slots_free: int
    state: str


@dataclass(frozen=True, slots=True)
class MachineInfo:
    """What this machine has, as psutil and NVML report it."""

    cpu_threads: int
    memory_bytes: int
    memory_available_bytes: int
    gpus: tuple[Gpu, ...]
