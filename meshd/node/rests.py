"""Which models wait before they are tried again, and why: one that failed a moment ago would fail again.

A failure makes its model rest, each further one twice as long, up to a bound. A model that then stayed loaded for
``STEADY_S`` begins anew. A file that is no model rests until it is another file, however long that takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from meshd.core.errors import MeshError, ModelInvalid
from meshd.core.ids import ModelDigest
from meshd.policy.backoff import backoff_s

BASE_S: Final = 1.0
"""After the first failure, at most. Most have a cause that is over at once: a kill, a page that was not there."""

MAX_S: Final = 300.0
"""A mesh gets on without a model for five minutes; loading a large one in vain, more often than that, costs the owner's
disk and memory. Whatever the owner changes ends the rest at once."""

STEADY_S: Final = 20.0
"""A model that was loaded for so long fails for another reason than it did before."""


@dataclass(slots=True)
class _Rest:
    failures: int
    until_s: float
    reason: str
    version: str = ""
    loaded_at_s: float | None = None


class Rests:
    """The failures of this node's models. Times are monotonic seconds; ``seed`` decides jitter."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._rests: dict[ModelDigest, _Rest] = {}

    def failed(self, digest: ModelDigest, error: MeshError, now_s: float, version: str = "") -> bool:
        """Note a failure; ``version`` tells the file apart from a later one. False when the model rests already: one
        crash is reported by everybody who was hit by it."""
        before = self._rests.get(digest)
        if before is not None and before.until_s > now_s:
            return False
        steady = before is None or (before.loaded_at_s is not None and now_s - before.loaded_at_s >= STEADY_S)
        failures = 1 if before is None or steady else before.failures + 1
        wait_s = math.inf
        if not isinstance(error, ModelInvalid):
            wait_s = backoff_s(failures, self._seed, base_s=BASE_S, max_s=MAX_S)
        self._rests[digest] = _Rest(failures, now_s + wait_s, first_line(error.message), version)
        return True

    def loaded(self, digest: ModelDigest, now_s: float) -> None:
        """The model is loaded: if it stays so, what was is forgotten."""
        if (rest := self._rests.get(digest)) is not None:
            rest.loaded_at_s, rest.until_s = now_s, now_s

    def left_s(self, digest: ModelDigest, now_s: float) -> float:
        """How much longer the model rests: 0 when it may be tried, infinity when only another file would do."""
        rest = self._rests.get(digest)
        return max(0.0, rest.until_s - now_s) if rest is not None else 0.0

    def reason(self, digest: ModelDigest) -> str:
        """Why it rests, or rested last and was not loaded since; empty when it did not."""
        rest = self._rests.get(digest)
        return rest.reason if rest is not None and rest.loaded_at_s is None else ""

    def next_s(self, now_s: float) -> float:
        """When the next rest is over; infinity when none ends by itself."""
        return min((r.until_s for r in self._rests.values() if r.until_s > now_s), default=math.inf)

    def broken(self) -> dict[ModelDigest, str]:
        """Models whose file is bad, and the version of the file that is."""
        return {digest: r.version for digest, r in self._rests.items() if math.isinf(r.until_s)}

    def forget(self, digest: ModelDigest) -> None:
        """The model is another one now, or gone."""
        self._rests.pop(digest, None)

    def forgive(self) -> None:
        """What held models back may be over (new limits): all but bad files may be tried at once."""
        self._rests = {digest: r for digest, r in self._rests.items() if math.isinf(r.until_s)}


def first_line(message: str) -> str:
    """The part of a failure's message that people need; what the engine printed goes to the log."""
    return message.partition("\n")[0]
