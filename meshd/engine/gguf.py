"""A bounded look into a GGUF file before llama.cpp gets it: is it one, is it whole, what is inside.

llama.cpp aborts on some damaged files; this turns the usual damage (not a GGUF, cut short, one part of several) into a
sentence. Reading is bounded by counts and by the file's own size; a hostile header costs memory for one string at most.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from meshd.core.errors import ModelInvalid
from meshd.core.ids import ModelDigest

_MAX_STRING_BYTES: Final = 4 * 1024 * 1024
_MAX_METADATA_ENTRIES: Final = 65_536
_MAX_TENSORS: Final = 65_536
_MAX_ARRAY_STRINGS: Final = 4_000_000
"""Vocabularies have up to 300,000 entries, merges as many."""

_VERSIONS: Final = (2, 3)
_DEFAULT_ALIGNMENT_BYTES: Final = 32
_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING: Final = 8
_ARRAY: Final = 9
_BLOCKS: Final = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}
"""Tensor type to (elements, bytes) of a block. The extent of a type not listed is not checked."""


@dataclass(frozen=True, slots=True)
class GgufInfo:
    """What a file says of itself. ``cache_bytes_per_token``: keys and values of all layers in 16 bits; 0 when the
    metadata does not tell."""

    name: str
    architecture: str
    context_tokens: int
    has_chat_template: bool
    size_bytes: int
    cache_bytes_per_token: int


def inspect(path: str) -> GgufInfo:
    """Check the file and read its facts; blocks for up to a second. Raises ModelInvalid with the reason."""
    try:
        with open(path, "rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            return _Reader(file, size_bytes).info()
    except OSError as error:
        raise ModelInvalid(f"the model file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ModelInvalid("the file's metadata is damaged: text is not UTF-8") from None


def digest(path: str) -> ModelDigest:
    """SHA-256 of the file; blocks for seconds on large ones. Raises ModelInvalid when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return ModelDigest(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise ModelInvalid(f"the model file cannot be read: {error.strerror}") from None


class _Reader:
    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._size_bytes = size_bytes

    def info(self) -> GgufInfo:
        if self._file.read(4) != b"GGUF":
            raise ModelInvalid("this is not a GGUF file")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise ModelInvalid(f"GGUF version {version} is not supported")
        tensors = self._count(_MAX_TENSORS, "tensors")
        entries = self._count(_MAX_METADATA_ENTRIES, "metadata entries")
        metadata = dict(self._entry() for _ in range(entries))
        extent = max((self._tensor_end() for _ in range(tensors)), default=0)
        self._check_whole(metadata, extent)
        return _facts(metadata, self._size_bytes)

    def _check_whole(self, metadata: dict[str, Any], extent_bytes: int) -> None:
        parts = metadata.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise ModelInvalid("this is one part of a split model: merge the parts first")
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT_BYTES)
        if not isinstance(alignment, int) or not 1 <= alignment <= 65_536:
            raise ModelInvalid("the file's metadata is damaged: alignment")
        start = -(-self._file.tell() // alignment) * alignment
        if start + extent_bytes > self._size_bytes:
            raise ModelInvalid(f"the file is cut short: {self._size_bytes} bytes of {start + extent_bytes}")

    def _exactly(self, count: int) -> bytes:
        if count > self._size_bytes - self._file.tell():
            raise ModelInvalid("the file is cut short: its header is not complete")
        return self._file.read(count)

    def _skip(self, count: int) -> None:
        if count > self._size_bytes - self._file.tell():
            raise ModelInvalid("the file is cut short: its header is not complete")
        self._file.seek(count, os.SEEK_CUR)

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._exactly(struct.calcsize(form)))[0]

    def _count(self, limit: int, what: str) -> int:
        count: int = self._number("<Q")
        if count > limit:
            raise ModelInvalid(f"the file's header is damaged: {count} {what}")
        return count

    def _string(self) -> str:
        size = self._number("<Q")
        if size > _MAX_STRING_BYTES:
            raise ModelInvalid("the file's header is damaged: a text is too long")
        return self._exactly(size).decode()

    def _entry(self) -> tuple[str, Any]:
        return self._string(), self._value(self._number("<I"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        return self._number(_form(kind))

    def _array(self) -> list[int] | None:
        """Skip an array, save for short ones of numbers (heads per layer): those are wanted."""
        kind = self._number("<I")
        if kind == _STRING:
            for _ in range(self._count(_MAX_ARRAY_STRINGS, "texts in a list")):
                self._skip(self._number("<Q"))
            return None
        form = _form(kind)
        count = self._number("<Q")
        if count > self._size_bytes:
            raise ModelInvalid("the file's header is damaged: a list is too long")
        if count > 4096:
            self._skip(count * struct.calcsize(form))
            return None
        return [self._number(form) for _ in range(count)]

    def _tensor_end(self) -> int:
        self._string()
        dimensions = self._number("<I")
        if dimensions > 8:
            raise ModelInvalid("the file's header is damaged: a tensor's shape")
        elements = 1
        for _ in range(dimensions):
            elements *= self._number("<Q")
        block = _BLOCKS.get(self._number("<I"))
        offset: int = self._number("<Q")
        return offset if block is None else offset + elements // block[0] * block[1]


def _form(kind: int) -> str:
    form = _SCALARS.get(kind)
    if form is None:
        raise ModelInvalid(f"the file's header is damaged: value type {kind}")
    return form


def _facts(metadata: dict[str, Any], size_bytes: int) -> GgufInfo:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelInvalid("the file names no architecture")
    name = metadata.get("general.name")
    context = metadata.get(f"{architecture}.context_length")
    return GgufInfo(
        name=name if isinstance(name, str) else architecture,
        architecture=architecture,
        context_tokens=context if isinstance(context, int) else 0,
        has_chat_template=isinstance(metadata.get("tokenizer.chat_template"), str),
        size_bytes=size_bytes,
        cache_bytes_per_token=_cache_bytes(metadata, architecture),
    )


def _cache_bytes(metadata: dict[str, Any], architecture: str) -> int:
    def whole(key: str) -> int:
        value = metadata.get(f"{architecture}.{key}", 0)
        value = max(value, default=0) if isinstance(value, list) else value
        return value if isinstance(value, int) and 0 <= value < 2**32 else 0

    heads = whole("attention.head_count")
    kv_heads = whole("attention.head_count_kv") or heads
    head_size = whole("embedding_length") // heads if heads else 0
    keys = whole("attention.key_length") or head_size
    values = whole("attention.value_length") or head_size
    return whole("block_count") * kv_heads * (keys + values) * 2
