"""llama.cpp's second context of a model: hidden states of texts, for embeddings.

It hands out the states of every token and leaves pooling to its caller, so that a text of a causal model may be
computed in parts as small as a running answer can bear. Where every token looks at all others, it is computed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from meshd.core.errors import EngineFailed

States = npt.NDArray[np.float32]

PART_TOKENS: Final = 64
"""A step of a causal model: running answers wait no longer for it than for a chunk of a prompt. llama.cpp computes the
logits of all of them as well, 64 MiB where the vocabulary is large."""

SEQUENCES: Final = 8
"""Texts under way at once."""

_POOLING_NONE: Final = 0
_FLASH_ATTENTION_AUTO: Final = -1


@dataclass(frozen=True, slots=True)
class Part:
    """``tokens`` of the text that ``sequence`` holds, from ``position``."""

    sequence: int
    position: int
    tokens: Sequence[int]


class LlamaVectors:
    """The context. ``whole``: texts cannot be computed in parts. ``pooling``: the file's word for it (a number)."""

    def __init__(
        self, model: lib.llama_model_p, context_tokens: int, threads: int, *, whole: bool, pooling: str | None
    ) -> None:
        self.context_tokens = context_tokens
        self.whole = whole
        self.pooling = pooling
        self.step_tokens = context_tokens if whole else min(PART_TOKENS, context_tokens)
        self.width = int(lib.llama_model_n_embd_out(model))
        params = lib.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_batch = params.n_ubatch = self.step_tokens
        params.n_seq_max = SEQUENCES
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.swa_full = False
        params.embeddings = True
        params.pooling_type = _POOLING_NONE
        params.flash_attn_type = _FLASH_ATTENTION_AUTO
        context: lib.llama_context_p | None = lib.llama_init_from_model(model, params)
        if not context:
            raise EngineFailed("llama.cpp cannot make a context for embeddings: not enough memory?")
        self._context = context
        self._memory = lib.llama_get_memory(context)
        self._batch = lib.llama_batch_init(self.step_tokens, 0, 1)

    def set_threads(self, threads: int) -> None:
        """Compute with so many threads from the next step on."""
        lib.llama_set_n_threads(self._context, threads, threads)

    def states(self, parts: Sequence[Part]) -> list[States]:
        """The hidden states of each part's tokens, a row a token. Raises EngineFailed."""
        batch = self._batch
        if sum(len(part.tokens) for part in parts) > self.step_tokens:  # Writing on would corrupt memory.
            raise ValueError("too many tokens for a step")
        count = 0
        for part in parts:
            for offset, token in enumerate(part.tokens):
                batch.token[count] = token
                batch.pos[count] = part.position + offset
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = part.sequence
                batch.logits[count] = True
                count += 1
        batch.n_tokens = count
        status = int(lib.llama_decode(self._context, batch))
        if status != 0:
            raise EngineFailed(f"llama_decode answered {status} to texts for embeddings")
        rows = iter(range(count))
        return [np.stack([self._row(next(rows)) for _ in part.tokens]) for part in parts]

    def _row(self, row: int) -> States:
        return np.ctypeslib.as_array(lib.llama_get_embeddings_ith(self._context, row), (self.width,)).copy()

    def clear(self) -> None:
        """Forget every text."""
        if self._memory:
            lib.llama_memory_clear(self._memory, False)
