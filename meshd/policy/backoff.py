"""How long to wait before the next try, and which refusals are worth one."""

from __future__ import annotations

import zlib
from typing import Final, assert_never

from meshd.core.task import DeclineReason, EndReason, LossReason

BASE_S: Final = 0.1
MAX_S: Final = 2.0

_FOR_GOOD = frozenset(
    {
        DeclineReason.NOT_SHARING,
        DeclineReason.NO_MODEL,
        DeclineReason.NO_ABILITY,
        DeclineReason.CLEARANCE,
        DeclineReason.REGION,
        DeclineReason.BEYOND_LIMITS,
        DeclineReason.WRONG_RECIPIENT,
        DeclineReason.BAD_TASK,
    }
)
"""What stays true for the life of one job. An expired, replayed or fenced offer is ours to make anew."""


def jitter(seed: int, n: int) -> float:
    """A number in [0, 1) that depends on ``seed`` and ``n`` only."""
    return zlib.crc32(f"{seed}/{n}".encode()) / 2**32


def backoff_s(tries: int, seed: int, *, base_s: float = BASE_S, max_s: float = MAX_S) -> float:
    """Seconds to wait after ``tries`` (from 1) failed ones: doubling, bounded, between half and all of it."""
    whole_s: float = min(max_s, base_s * 2.0 ** min(max(tries, 1) - 1, 30))
    return whole_s * (0.5 + 0.5 * jitter(seed, tries))


def worth_retry(reason: DeclineReason) -> bool:
    """Whether the same worker may accept the same job in a moment."""
    return reason not in _FOR_GOOD


def worth_return(reason: LossReason) -> bool:
    """Whether a worker that lost an attempt this way may be given the job again later."""
    return reason is not LossReason.PROTOCOL


def loss_by(reason: EndReason) -> LossReason:
    """What a worker's own end of an attempt means to the submitter."""
    match reason:
        case EndReason.ENGINE_FAILED:
            return LossReason.ENGINE_FAILED
        case EndReason.LEASE_LAPSED:
            return LossReason.LEASE_LAPSED
        case EndReason.DRAINING | EndReason.CANCELLED:
            return LossReason.DRAINING
        case EndReason.BAD_INPUT | EndReason.CONTEXT_OVERFLOW | EndReason.BUSY:
            return LossReason.DECLINED
        case _:
            assert_never(reason)
