"""How probable the model thought a token: natural logarithms over its own logits, before anything bent them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from meshd.core.generation import Alternative, Score, Token
from meshd.engine.frames import Message
from meshd.engine.sampling import Logits


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token that was drawn, and its score where the request asks for one."""

    token: int
    piece: bytes
    score: Score | None = None


def scores(logits: Logits, token: int, top: int, text: Callable[[int], bytes]) -> Score:
    """The score of ``token`` with the ``top`` most probable tokens, best first, equal ones in order of their ids.
    ``text`` gives a token's bytes, control tokens spelt out."""
    largest = float(logits.max())
    # Summed in float64 and in order: equal logits give equal scores, to the last bit.
    total = largest + float(np.log(np.exp(logits - np.float32(largest)).sum(dtype=np.float64)))
    best = _best(logits, top)
    return Score(
        float(logits[token]) - total, tuple(Alternative(id, text(id), float(logits[id]) - total) for id in best)
    )


def _best(logits: Logits, count: int) -> list[int]:
    if count <= 0:
        return []
    count = min(count, len(logits))
    least = np.partition(logits, -count)[-count]
    ids = np.flatnonzero(logits >= least)
    order = np.lexsort((ids, -logits[ids]))
    return [int(id) for id in ids[order[:count]]]


def scored_message(id: int, index: int, drawn: Drawn) -> Message:
    """The message that tells of one drawn token: ``tokens``, or ``scored`` where it has a score."""
    if drawn.score is None:
        return ["tokens", id, index, [[drawn.token, drawn.piece]]]
    top = [[a.id, a.piece, a.logprob] for a in drawn.score.top]
    return ["scored", id, index, [[drawn.token, drawn.piece, drawn.score.logprob, top]]]


def scored_tokens(first: int, tokens: Sequence[Sequence[Any]]) -> tuple[Token, ...]:
    """The tokens that a ``scored`` message told of. Raises ValueError or TypeError when it is none."""
    return tuple(
        Token(first + i, token, piece, Score(logprob, tuple(Alternative(*a) for a in top)))
        for i, (token, piece, logprob, top) in enumerate(tokens)
    )
