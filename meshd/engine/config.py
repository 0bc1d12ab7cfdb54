"""How the pool runs its engines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """``context_tokens`` is per slot. ``gpu_layers`` -1: all, where this build of llama.cpp can offload. An engine
    that has work and shows no life for ``hang_after_s`` is killed; so is one that loads for
    ``load_timeout_s`` without progress. Once steps were seen, a silence many times as long as they is too long, too
    (`engine.watchdog`). ``priority``: normal, low (``nice`` steps behind the owner's own programs) or idle."""

    slots: int = 4
    context_tokens: int = 4096
    prefill_chunk_tokens: int = 256
    gpu_layers: int = -1
    load_timeout_s: float = 120.0
    hang_after_s: float = 30.0
    priority: str = "low"
    nice: int = 5


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """How patient this node is with servers that it stands in front of. ``first_token_timeout_s``: from the request to
    the first token, a long prompt and a place in the server's queue included; ``stall_timeout_s``: between two tokens.
    A server that failed is asked again after a second, then twice as long each time, at most ``max_rest_s``."""

    connect_timeout_s: float = 5.0
    first_token_timeout_s: float = 120.0
    stall_timeout_s: float = 30.0
    check_interval_s: float = 10.0
    check_timeout_s: float = 5.0
    learn_timeout_s: float = 120.0
    max_rest_s: float = 60.0
