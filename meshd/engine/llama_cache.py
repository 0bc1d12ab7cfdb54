"""One llama.cpp context: sequences with a cache each, and the steps that they are decoded in.

``kv_unified`` is off: a sequence's cells start at 0 and nobody else's cells lie between them, which exact answers
depend on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import llama_cpp as lib
import numpy as np

from meshd.engine.sampling import Logits
from meshd.engine.schedule import Feed

_UBATCH_TOKENS: Final = 512
"""Part of the meaning of ``exact``, as it sizes the sliding-window cache: keep it constant."""

_FLASH_ATTENTION_AUTO: Final = -1
_FLASH_ATTENTION_OFF: Final = 0


@dataclass(frozen=True, slots=True)
class CacheShape:
    """``slots`` sequences of ``context_tokens`` each, steps of at most ``batch_tokens``. ``exact``: without what makes
    numbers depend on the thread count (docs/decisions/0009)."""

    slots: int
    context_tokens: int
    batch_tokens: int
    threads: int
    exact: bool


class LlamaCache:
    """Not thread-safe; every call may take as long as llama.cpp takes. Raises MemoryError when llama.cpp makes no such
    context."""

    def __init__(self, model: lib.llama_model_p, shape: CacheShape) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = shape.context_tokens * shape.slots
        params.n_batch = shape.batch_tokens
        params.n_ubatch = _UBATCH_TOKENS
        params.n_seq_max = shape.slots
        params.n_threads = params.n_threads_batch = shape.threads
        params.kv_unified = False
        params.swa_full = False
        params.flash_attn_type = _FLASH_ATTENTION_OFF if shape.exact else _FLASH_ATTENTION_AUTO
        context: lib.llama_context_p | None = lib.llama_init_from_model(model, params)
        if not context:
            raise MemoryError("llama.cpp cannot make a context for this model")
        self._context = context
        self._memory = lib.llama_get_memory(context)
        self._batch = lib.llama_batch_init(shape.batch_tokens, 0, 1)
        self._batch_tokens = shape.batch_tokens
        self._vocab_tokens = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
        self._window_tokens = int(lib.llama_model_n_swa(model))

    @property
    def has_memory(self) -> bool:
        """Whether there is anything to go on from: models that only embed have none."""
        return bool(self._memory)

    def set_threads(self, threads: int) -> None:
        """Compute with so many threads from the next decode on."""
        lib.llama_set_n_threads(self._context, threads, threads)

    def decode(self, feeds: Sequence[Feed], first_slot: int) -> int:
        """Run one step of sequences whose slots count from ``first_slot``; llama_decode's status: 0 done, 1 no room in
        the cache, below 0 an error."""
        batch = self._batch
        total = sum(len(feed.tokens) for feed in feeds)
        if total > self._batch_tokens:  # Writing on would corrupt memory.
            raise ValueError(f"a step of {total} tokens is over {self._batch_tokens}")
        count = 0
        for feed in feeds:
            for offset, token in enumerate(feed.tokens):
                batch.token[count] = token
                batch.pos[count] = feed.position + offset
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = feed.slot - first_slot
                batch.logits[count] = feed.logits and offset == len(feed.tokens) - 1
                count += 1
        batch.n_tokens = count
        return int(lib.llama_decode(self._context, batch))

    def logits(self, row: int) -> Logits:
        """Logits after the token at ``row`` of the last step's batch; a view that the next decode overwrites."""
        pointer = lib.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self._vocab_tokens,))

    def keep(self, sequence: int, tokens: int) -> bool:
        """Cut the sequence's cache to its first ``tokens``. False: this kind of model cannot, and it is empty."""
        if lib.llama_memory_seq_rm(self._memory, sequence, tokens, -1):
            return True
        lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return tokens == 0

    def copy(self, source: int, target: int) -> None:
        """Put a copy of the source's whole cache into the target; it is made at the next decode."""
        lib.llama_memory_seq_rm(self._memory, target, -1, -1)
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def reaches_back(self, sequence: int, tokens: int) -> bool:
        """Whether the cache, cut to ``tokens``, still has all positions that the next token looks at."""
        oldest = int(lib.llama_memory_seq_pos_min(self._memory, sequence))
        return 0 <= oldest <= max(tokens - self._window_tokens, 0)

    def untouched(self, sequence: int) -> bool:
        """Whether the cache has every position from the first."""
        return int(lib.llama_memory_seq_pos_min(self._memory, sequence)) == 0
