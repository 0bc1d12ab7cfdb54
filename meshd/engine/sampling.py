"""Draws the next token from logits. Pure numpy; randomness is a function of (seed, token index) and nothing else.

The draw walks the cumulative distribution in the order of token ids, not of probabilities: when two workers' logits
differ in the last bits, near-ties may swap rank, but the same number still falls on the same token almost always.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from meshd.core.generation import Sampling

Logits = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int64] | None
_Weights = npt.NDArray[np.float32]

BLOCK = 1024
"""Weights summed at once when the place of a draw is looked for."""


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) for the token at ``index`` of the answer: the same on every machine."""
    digest = blake2b(seed.to_bytes(8, "big") + index.to_bytes(8, "big"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


class Draw:
    """Sampling of one answer. Penalties count over the whole answer, resumed part included."""

    def __init__(self, sampling: Sampling, delivered: Sequence[int]) -> None:
        self._sampling = sampling
        self._index = len(delivered)
        self._penalised = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._counts: Counter[int] = Counter(delivered if self._penalised else ())
        self._biased = np.array([b.token for b in sampling.biases], dtype=np.int64)
        self._biases = np.array([b.bias for b in sampling.biases], dtype=np.float32)

    def next(self, logits: Logits) -> int:
        """The next token's id. Changes ``logits`` in place. Raises FloatingPointError when none is finite."""
        self.bend(logits)
        token = self.pick(logits)
        self.note(token)
        return token

    def bend(self, logits: Logits) -> None:
        """Put the request's biases and penalties on the model's ``logits``, in place."""
        if len(self._biased):
            logits[self._biased] += self._biases
        self._penalise(logits)

    def pick(self, logits: Logits) -> int:
        """The token that is drawn from bent ``logits``. Asked again after some were set to minus infinity, it draws
        by the same random number. Raises FloatingPointError when none is finite."""
        greedy = int(np.argmax(logits))
        if not np.isfinite(logits[greedy]):
            raise FloatingPointError("the model computed no finite logits")
        return greedy if self._sampling.temperature == 0 else self._random(logits, float(logits[greedy]))

    def note(self, token: int) -> None:
        """``token`` is the answer's next one."""
        self._index += 1
        if self._penalised:
            self._counts[token] += 1

    def _penalise(self, logits: Logits) -> None:
        if not self._counts:
            return
        ids = np.fromiter(self._counts.keys(), dtype=np.int64, count=len(self._counts))
        counts = np.fromiter(self._counts.values(), dtype=np.float32, count=len(self._counts))
        penalty = counts * self._sampling.frequency_penalty + self._sampling.presence_penalty
        logits[ids] -= penalty.astype(np.float32)

    def _random(self, logits: Logits, top: float) -> int:
        s = self._sampling
        ids = _top_k(logits, s.top_k)
        kept = logits if ids is None else logits[ids]
        weights = np.exp(kept - np.float32(top))
        # top_p and min_p judge the model's own distribution; the temperature then bends what they left.
        ids, weights = _narrow(ids, weights, _top_p_floor(weights, s.top_p), s.min_p)
        if s.temperature != 1:
            kept = logits if ids is None else logits[ids]
            weights = np.exp((kept - np.float32(top)) / np.float32(s.temperature))
        place = _place(weights, uniform(s.seed, self._index))
        return place if ids is None else int(ids[place])


def _place(weights: _Weights, part: float) -> int:
    """Where ``part`` of the weights' sum is reached. Sums go by blocks: running ones over a vocabulary of a quarter
    of a million cost milliseconds."""
    starts = np.arange(0, len(weights), BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    wanted = part * sums[-1]
    block = min(int(np.searchsorted(sums, wanted, side="right")), len(sums) - 1)
    start = block * BLOCK
    inside = np.cumsum(weights[start : start + BLOCK], dtype=np.float64)
    before = float(sums[block - 1]) if block else 0.0
    place = int(np.searchsorted(inside, wanted - before, side="right"))
    if place < len(inside):
        return start + place
    # Sums of two orders may differ in the last bit; what has no weight must not be drawn even then.
    return int(np.flatnonzero(weights[: start + BLOCK])[-1])


def _top_k(logits: Logits, k: int) -> _Ids:
    """Ids of the ``k`` largest logits in rising order of id; None for all."""
    if not 0 < k < len(logits):
        return None
    return np.sort(np.argpartition(logits, -k)[-k:])


def _top_p_floor(weights: _Weights, p: float) -> float:
    """The smallest weight inside the nucleus of mass ``p``; 0 when everything is inside."""
    if p >= 1:
        return 0.0
    mass = p * float(weights.sum(dtype=np.float64))
    size = 256
    # The nucleus is nearly always tiny: sorting a vocabulary of 262,144 for it would cost more than the draw.
    while size < len(weights):
        largest = np.sort(np.partition(weights, -size)[-size:])[::-1]
        sums = np.cumsum(largest, dtype=np.float64)
        if sums[-1] >= mass:
            return float(largest[int(np.searchsorted(sums, mass))])
        size *= 8
    largest = np.sort(weights)[::-1]
    return float(largest[min(int(np.searchsorted(np.cumsum(largest, dtype=np.float64), mass)), len(largest) - 1)])


def _narrow(ids: _Ids, weights: _Weights, floor: float, min_p: float) -> tuple[_Ids, _Weights]:
    """Only what is at least ``floor`` and ``min_p`` of the best (whose weight is 1)."""
    floor = max(floor, min_p)
    if floor <= 0:
        return ids, weights
    inside = np.flatnonzero(weights >= floor)
    return (inside if ids is None else ids[inside]), weights[inside]
