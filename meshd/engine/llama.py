"""llama.cpp behind a dozen calls: with llama_cache.py and llama_vectors.py the only modules that import llama_cpp.

Answers share one cache, with all that makes llama.cpp fast. Exact ones get another, without flash attention, made when
the first of them comes. Offloading to a GPU follows llama.cpp's own support flag; that path has never been run on a
GPU.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import llama_cpp as lib
import psutil

from meshd.core.errors import BeyondLimits, EngineFailed, MeshError, ModelInvalid
from meshd.engine.llama_cache import CacheShape, LlamaCache
from meshd.engine.llama_vectors import LlamaVectors
from meshd.engine.sampling import Logits
from meshd.engine.schedule import Feed

_WARN_LEVEL: Final = 3
_CONTINUED_LEVEL: Final = 5
_NO_MEMORY: Final = ("cannot allocate", "failed to allocate", "out of memory", "bad_alloc", "unable to allocate")
"""How llama.cpp says that the machine has no room: its functions answer null, whatever the cause."""

_MAX_PIECE_BYTES: Final = 4096
ALL_LAYERS: Final = -1


_complaints: deque[str] = deque(maxlen=32)


@lib.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def _log(level: int, text: bytes, _data: object) -> None:
    if _WARN_LEVEL <= level < _CONTINUED_LEVEL:
        words = text.decode("utf-8", "replace")
        _complaints.append(words)
        sys.stderr.write(words)
        sys.stderr.flush()


def _why(otherwise: MeshError) -> MeshError:
    """``otherwise``, unless llama.cpp has just complained of memory."""
    said = " ".join(_complaints).lower()
    if any(words in said for words in _NO_MEMORY):
        return BeyondLimits("this machine has too little free memory for the model")
    return otherwise


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to load and how. ``gpu_layers`` -1: all, where this build can offload. ``memory_bytes``: what the owner
    allows in all (0: no bound); it may change later. ``progress`` hears how much of the
    file is in (0 to 1)."""

    path: str
    slots: int
    context_tokens: int
    batch_tokens: int
    threads: int
    gpu_layers: int
    progress: Callable[[float], None] = lambda fraction: None
    memory_bytes: int = 0


class LlamaModel:
    """A loaded model and its caches. Not thread-safe; every call may take as long as llama.cpp takes."""

    def __init__(self, plan: LoadPlan) -> None:
        lib.llama_log_set(_log, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.gpu_layers = 0
        self._model = self._load(plan)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_tokens = int(lib.llama_vocab_n_tokens(self._vocab))
        self.context_tokens = self._context_tokens(plan.context_tokens)
        self._plan = plan
        self._threads = plan.threads
        self.memory_bytes = plan.memory_bytes
        before_bytes = _resident_bytes()
        self._shared = self._current = self._open(exact=False)
        self._cache_bytes = max(_resident_bytes() - before_bytes, 0)
        self._exact: LlamaCache | None = None
        self._pieces: dict[int, bytes] = {}
        self.rewinds = not (lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model))
        self.pooling = self.metadata_of_architecture("pooling_type")
        self.width = int(lib.llama_model_n_embd_out(self._model))
        # Without a memory, or where every token looks at all others, there is nothing to go on from: such a model
        # turns texts into vectors and no more.
        self.generates = self._shared.has_memory and self.metadata_of_architecture("attention.causal") != "false"

    def _load(self, plan: LoadPlan) -> lib.llama_model_p:
        params = lib.llama_model_default_params()
        if lib.llama_supports_gpu_offload():
            # 999 is llama.cpp's own way of saying "every layer".
            self.gpu_layers = 999 if plan.gpu_layers == ALL_LAYERS else plan.gpu_layers
        params.n_gpu_layers = self.gpu_layers

        @lib.llama_progress_callback  # type: ignore[untyped-decorator, unused-ignore]
        def progress(fraction: float, _data: object) -> bool:
            plan.progress(float(fraction))
            return True

        params.progress_callback = progress
        _complaints.clear()
        model: lib.llama_model_p | None = lib.llama_model_load_from_file(os.fsencode(plan.path), params)
        if not model:
            raise _why(ModelInvalid("llama.cpp cannot load this file"))
        if lib.llama_model_has_encoder(model) or not lib.llama_model_has_decoder(model):
            raise ModelInvalid("encoder-decoder models are not supported")
        if lib.llama_model_is_diffusion(model):
            raise ModelInvalid("diffusion models are not supported")
        self.gpu_layers = min(self.gpu_layers, int(lib.llama_model_n_layer(model)) + 1)
        return model

    def _open(self, *, exact: bool) -> LlamaCache:
        plan = self._plan
        shape = CacheShape(plan.slots, self.context_tokens, plan.batch_tokens, self._threads, exact)
        _complaints.clear()
        try:
            return LlamaCache(self._model, shape)
        except MemoryError as error:
            raise _why(EngineFailed(str(error))) from None

    def _check_room(self, more_bytes: int, what: str) -> None:
        """Refuse what would pass the owner's ceiling: the pool would kill the engine for it, and all it runs."""
        if self.memory_bytes and _resident_bytes() + more_bytes > self.memory_bytes:
            raise BeyondLimits(
                f"{what} about {more_bytes >> 20} MiB more than the owner allows",
                hint="raise the memory limit, or lower engine.slots or engine.context_tokens",
            )

    def _context_tokens(self, wanted_tokens: int) -> int:
        trained_tokens = int(lib.llama_model_n_ctx_train(self._model))
        return min(wanted_tokens, trained_tokens) if trained_tokens > 0 else wanted_tokens

    def set_threads(self, threads: int) -> None:
        """Compute with so many threads from the next decode on."""
        self._threads = threads
        for cache in (self._shared, self._exact):
            if cache is not None:
                cache.set_threads(threads)

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as text."""
        size = 4096
        while True:
            buffer = ctypes.create_string_buffer(size)
            needed = int(lib.llama_model_meta_val_str(self._model, key.encode(), buffer, size))
            if needed < size:
                return None if needed < 0 else buffer.value.decode("utf-8", "replace")
            size = needed + 1

    def metadata_of_architecture(self, key: str) -> str | None:
        """A value whose key in the file begins with the architecture's name."""
        return self.metadata(f"{self.metadata('general.architecture')}.{key}")

    def vectors(self, threads: int) -> LlamaVectors:
        """A context of its own that turns texts into vectors. Raises EngineFailed, BeyondLimits (no memory for it)."""
        self._check_room(self._cache_bytes // self._plan.slots, "vectors take")
        bound = self.context_tokens
        return LlamaVectors(self._model, bound, threads, whole=not self.generates, pooling=self.pooling)

    def chat_template(self) -> str | None:
        """The Jinja source in the file; None when there is none."""
        return self.metadata("tokenizer.chat_template")

    def bos_text(self) -> str:
        """The beginning-of-text token as templates write it; empty when the model has none."""
        return self._special_text(int(lib.llama_vocab_bos(self._vocab)))

    def eos_text(self) -> str:
        """The end-of-text token as templates write it; empty when the model has none."""
        return self._special_text(int(lib.llama_vocab_eos(self._vocab)))

    def adds_bos(self) -> bool:
        """Whether tokenising a prompt puts the beginning-of-text token in front."""
        return bool(lib.llama_vocab_get_add_bos(self._vocab))

    def _special_text(self, token: int) -> str:
        return self._piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def tokenize(self, text: str, *, start: bool, special: bool) -> list[int]:
        """Token ids of ``text``. ``start``: put the model's beginning-of-text in front. ``special``: text that spells
        a control token becomes that token."""
        data = text.encode("utf-8", "replace")
        capacity = len(data) + 8
        while True:
            buffer = (lib.llama_token * capacity)()
            count = int(lib.llama_tokenize(self._vocab, data, len(data), buffer, capacity, start, special))
            if count >= 0:
                return list(buffer[:count])
            capacity = -count

    def piece(self, token: int) -> bytes:
        """The bytes a generated token stands for; control tokens stand for none."""
        if token not in self._pieces:
            self._pieces[token] = self._piece(token, special=False)
        return self._pieces[token]

    def text(self, token: int) -> bytes:
        """The bytes of any token, control tokens spelt out."""
        return self._piece(token, special=True)

    def pieces(self) -> list[bytes]:
        """``piece`` of every token of the vocabulary: a second for a quarter of a million."""
        buffer = ctypes.create_string_buffer(_MAX_PIECE_BYTES)
        to_piece, vocab = lib.llama_token_to_piece, self._vocab
        sizes = (int(to_piece(vocab, t, buffer, _MAX_PIECE_BYTES, 0, False)) for t in range(self.vocab_tokens))
        return [ctypes.string_at(buffer, max(size, 0)) for size in sizes]

    def _piece(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(_MAX_PIECE_BYTES)
        size = int(lib.llama_token_to_piece(self._vocab, token, buffer, _MAX_PIECE_BYTES, 0, special))
        return buffer.raw[: max(size, 0)]

    def ends(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    # -- decoding: slots below ``slots`` share steps, those from there on are the exact ones

    def _of(self, slot: int) -> tuple[LlamaCache, int]:
        """The cache that the slot is in, and its number there. Raises EngineFailed, BeyondLimits."""
        if slot < self._plan.slots:
            return self._shared, slot
        if self._exact is None:
            self._check_room(self._cache_bytes, "exact answers take")
            self._exact = self._open(exact=True)
        return self._exact, slot - self._plan.slots

    def decode(self, feeds: Sequence[Feed]) -> int:
        """Run one step, of exact slots only or of others only; llama_decode's status: 0 done, 1 no room in the cache,
        below 0 an error."""
        slot = feeds[0].slot
        self._current, number = self._of(slot)
        return self._current.decode(feeds, slot - number)

    def logits(self, row: int) -> Logits:
        """Logits after the token at ``row`` of the last step's batch; a view that the next decode overwrites."""
        return self._current.logits(row)

    def keep(self, slot: int, tokens: int) -> bool:
        """Cut the slot's cache to its first ``tokens``. False: this kind of model cannot, and the slot is empty."""
        cache, number = self._of(slot)
        return cache.keep(number, tokens)

    def copy(self, source: int, target: int) -> None:
        """Put a copy of the source slot's whole cache into the target, a slot of the same kind."""
        cache, number = self._of(source)
        cache.copy(number, target - source + number)

    def reaches_back(self, slot: int, tokens: int) -> bool:
        """Whether the slot's cache, cut to ``tokens``, still has all positions that the next token looks at."""
        cache, number = self._of(slot)
        return cache.reaches_back(number, tokens)

    def untouched(self, slot: int) -> bool:
        """Whether the slot's cache has every position from the first."""
        cache, number = self._of(slot)
        return cache.untouched(number)
