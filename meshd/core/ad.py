"""An ad: a node's signed, expiring statement of what it offers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meshd.core import limits
from meshd.core.classes import DataClass
from meshd.core.errors import BadInput
from meshd.core.ids import ModelDigest, NodeId, parse_digest, parse_node_id

MIN_TOKENS_PER_S = 1e-9
MAX_TOKENS_PER_S = 1e12
"""What a rate can be, with much room: beyond it, sums of seconds would not be numbers any more."""


def _words(text: str, max_characters: int) -> None:
    """Refuse what is too long, or would move a terminal's cursor: these words are shown on other machines."""
    if len(text) > max_characters or not text.isprintable():
        raise BadInput("ad field too long, or not printable", param="ad")


def _rate(tokens_per_s: float) -> None:
    if tokens_per_s != 0 and not MIN_TOKENS_PER_S <= tokens_per_s <= MAX_TOKENS_PER_S:
        raise BadInput("a rate is 0 (not measured) or a sensible number of tokens per second", param="models")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML reports it."""

    name: str
    memory_bytes: int
    free_bytes: int

    def __post_init__(self) -> None:
        _words(self.name, 200)
        if self.memory_bytes < 0 or self.free_bytes < 0:
            raise BadInput("memory is never negative", param="gpus")


class Ability(StrEnum):
    """What an offered model can be asked for. ``resume``: to go on after tokens that another delivered."""

    GENERATE = "generate"
    EMBED = "embed"
    TOKENIZE = "tokenize"
    RESUME = "resume"


ABILITIES_OF_A_FILE = (Ability.GENERATE, Ability.EMBED, Ability.TOKENIZE, Ability.RESUME)


class DeviceKind(StrEnum):
    """What computes: this machine's processors, a GPU, or a server that this node stands in front of."""

    CPU = "cpu"
    GPU = "gpu"
    UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class Rate:
    """Measured: ``sequences`` answers at once give ``tokens_per_s`` in all."""

    sequences: int
    tokens_per_s: float

    def __post_init__(self) -> None:
        if not 1 <= self.sequences <= 4096:
            raise BadInput("a rate is about 1 to 4,096 sequences", param="models")
        _rate(self.tokens_per_s)


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """A model a node can run. Rates are measured on that node (tokens/s); 0 means not measured yet.
    ``ready``: loaded now, not only on disk. ``rates``: of several answers at once, by their number, rising.
    ``class_max``: the highest data class that may be given to it, however much the node itself is cleared for."""

    name: str
    digest: ModelDigest
    context_tokens: int
    prefill_tokens_per_s: float = 0.0
    generation_tokens_per_s: float = 0.0
    ready: bool = False
    rates: tuple[Rate, ...] = ()
    abilities: tuple[Ability, ...] = ABILITIES_OF_A_FILE
    device: DeviceKind = DeviceKind.CPU
    class_max: DataClass = DataClass.RESTRICTED

    def __post_init__(self) -> None:
        parse_digest(self.digest)
        if len(self.rates) > limits.MAX_RATES_PER_MODEL or len(self.abilities) > len(Ability):
            raise BadInput("too many rates or abilities of a model", param="models")
        if not 1 <= len(self.name) <= 200:
            raise BadInput("model name must have 1 to 200 characters", param="models")
        _words(self.name, 200)
        _rate(self.prefill_tokens_per_s)
        _rate(self.generation_tokens_per_s)
        if self.context_tokens < 0:
            raise BadInput("a context is never negative", param="models")


class OfferState(StrEnum):
    """Whether a node takes new work from others."""

    OPEN = "open"
    NOT_SHARING = "not_sharing"
    PAUSED = "paused"
    DRAINING = "draining"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Ad:
    """What ``node`` offers. (``boot``, ``seq``) orders ads of one node, newest wins. Times are wall clock (s).

    ``addresses`` are libp2p multiaddrs without the peer id. ``reason`` says in words why ``state`` is what it is.
    """

    node: NodeId
    boot: int
    seq: int
    issued_at: float
    expires_at: float
    name: str
    addresses: tuple[str, ...]
    cpu_threads: int
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    models: tuple[ModelOffer, ...]
    slots: int
    slots_free: int
    state: OfferState
    reason: str
    software: str

    def __post_init__(self) -> None:
        parse_node_id(self.node)
        if not 0 < self.expires_at - self.issued_at <= limits.AD_TTL_S:
            raise BadInput("an ad lives at most AD_TTL_S", param="expires_at")
        if len(self.models) > limits.MAX_MODELS_PER_AD or len(self.gpus) > limits.MAX_GPUS_PER_AD:
            raise BadInput("too many models or GPUs in an ad", param="models")
        if not 0 <= self.slots_free <= self.slots <= 4096:
            raise BadInput("slots out of range", param="slots")
        if len(self.addresses) > 16:
            raise BadInput("too many addresses in an ad", param="addresses")
        for text, max_characters in ((self.name, 100), (self.reason, 200), (self.software, 100)):
            _words(text, max_characters)
        for address in self.addresses:
            _words(address, 400)
        if min(self.boot, self.seq, self.cpu_threads, self.memory_bytes) < 0:
            raise BadInput("a count in an ad is never negative", param="ad")

    @property
    def version(self) -> tuple[int, int]:
        """What "newer" means: a later boot of the node, then a later sequence number."""
        return (self.boot, self.seq)

    def model(self, name: str, digest: ModelDigest | None = None) -> ModelOffer | None:
        """The offer for the model of that name (and digest, when pinned); None when there is none."""
        for m in self.models:
            if m.name == name and digest in (None, m.digest):
                return m
        return None
