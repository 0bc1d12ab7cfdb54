"""Which feasible candidate is *best*: the one expected to finish first. Seconds, estimated from measured rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from meshd.core.ad import ModelOffer, Rate
from meshd.core.job import Job
from meshd.policy.feasible import Candidate

ASSUMED_PREFILL_TOKENS_PER_S: Final = 200.0
ASSUMED_GENERATION_TOKENS_PER_S: Final = 20.0
"""For models not measured yet: slow enough that a measured node wins, fast enough to be tried."""

LOAD_S: Final = 3.0
"""Typical time until a model on disk is ready."""

REMOTE_S: Final = 0.01
"""One hop more: sealing, a round trip, frames."""

SHARED_SLOT_COST: Final = 0.35
"""How much one more running sequence slows each of them, where it was not measured: 16 at once cost each about 6x on
a CPU."""

NEAR: Final = 1.1
"""Candidates within this factor of the best are equally good; the job's id decides among them."""

BYTES_PER_TOKEN: Final = 4
ASSUMED_OUTPUT_TOKENS: Final = 256


class Cost(NamedTuple):
    """What a candidate takes: seconds per prompt token, per generated token, and on top."""

    prefill_s_per_token: float
    generation_s_per_token: float
    fixed_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """How much there is to do, guessed where it is unknown."""

    prompt_tokens: float
    output_tokens: float


def cost_of(candidate: Candidate, offer: ModelOffer | None) -> Cost:
    """What one more sequence costs on ``candidate``; ``offer`` None is a no-op, which only costs the way."""
    way_s = 0.0 if candidate.local else REMOTE_S
    if offer is None:
        return Cost(0.0, 0.0, way_s)
    running = candidate.ad.slots - candidate.ad.slots_free
    alone = offer.generation_tokens_per_s or ASSUMED_GENERATION_TOKENS_PER_S
    beside = answer_tokens_per_s(offer.rates, running + 1) or alone / (1 + SHARED_SLOT_COST * running)
    return Cost(
        alone / beside / (offer.prefill_tokens_per_s or ASSUMED_PREFILL_TOKENS_PER_S),
        1 / beside,
        way_s if offer.ready else way_s + LOAD_S,
    )


def answer_tokens_per_s(rates: Sequence[Rate], sequences: int) -> float:
    """What one of so many answers at once gets, between the measured points by a straight line, beyond the last one
    an equal share of what that gave in all; 0 when nothing was measured at or below that many."""
    below = [rate for rate in rates if rate.sequences <= sequences and rate.tokens_per_s > 0]
    above = [rate for rate in rates if rate.sequences > sequences and rate.tokens_per_s > 0]
    if not below:
        return 0.0
    low = below[-1]
    if not above:
        return low.tokens_per_s / sequences
    part = (sequences - low.sequences) / (above[0].sequences - low.sequences)
    return (low.tokens_per_s + part * (above[0].tokens_per_s - low.tokens_per_s)) / sequences


def work_of(job: Job) -> Work:
    """The work in ``job``, from the size of its prompt and its ``max_tokens``."""
    if job.generation is None:
        return Work(0, 0)
    expected = min(job.generation.max_tokens or ASSUMED_OUTPUT_TOKENS, ASSUMED_OUTPUT_TOKENS)
    return Work(job.generation.prompt.size_bytes() / BYTES_PER_TOKEN, expected)


def expected_s(cost: Cost, work: Work) -> float:
    """Seconds until the work would be done."""
    return (
        cost.fixed_s + cost.prefill_s_per_token * work.prompt_tokens + cost.generation_s_per_token * work.output_tokens
    )
