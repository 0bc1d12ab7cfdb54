"""What the owner of a machine lets others use: nothing, until ``mesh share`` was given."""

from __future__ import annotations

from dataclasses import dataclass

from meshd.core.errors import BadInput


@dataclass(frozen=True, slots=True)
class Share:
    """The owner's limits. ``cpu`` is the fraction of the machine's cores (0 < cpu <= 1); ``memory_bytes`` the
    ceiling of the engine's resident memory, None for no ceiling of its own. ``paused`` holds sharing for a while."""

    enabled: bool = False
    cpu: float = 0.5
    memory_bytes: int | None = None
    paused: bool = False

    def __post_init__(self) -> None:
        if not 0.01 <= self.cpu <= 1:
            raise BadInput("cpu must be between 1% and 100%", param="cpu")
        if self.memory_bytes is not None and self.memory_bytes < 64 * 1024 * 1024:
            raise BadInput("memory below 64 MiB runs no model", param="memory")
