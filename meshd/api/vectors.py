"""The bodies of answers that are no text: vectors, tokens, and text made of tokens. Pure."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence

from meshd.api.asked import EmbeddingRequest, TokenizationRequest
from meshd.api.chunks import Account
from meshd.core.errors import BadInput, EngineFailed
from meshd.core.generation import Opening, Token
from meshd.core.ids import JobId
from meshd.node.views import ItemsDelta, JobDone, TextDelta

FLOAT_BYTES = 4

LARGE_BYTES = 64 * 1024
"""Vectors beyond this take over 10 ms to write as numbers."""


class _Items:
    """Collects the numbered items of one job."""

    def __init__(self, jobs: Sequence[JobId]) -> None:
        self._account = Account(jobs, 1)
        self._items: list[Token] = []
        self._size_bytes = 0

    @property
    def large(self) -> bool:
        """Whether the body is better made on a thread."""
        return self._size_bytes > LARGE_BYTES

    def opened(self, choice: int, opening: Opening) -> None:
        """The engine has the inputs."""

    def take(self, choice: int, delta: TextDelta | ItemsDelta) -> None:
        """New items."""
        if isinstance(delta, ItemsDelta):
            self._items += delta.items
            self._size_bytes += sum(len(item.piece) for item in delta.items)

    def done(self, choice: int, done: JobDone, attempts: int) -> None:
        """All items are there."""
        self._account.done(choice, done, attempts)


class WholeEmbeddings(_Items):
    """Vectors, in the order of their inputs. Implements `chunks.Whole`."""

    def __init__(self, request: EmbeddingRequest, jobs: Sequence[JobId]) -> None:
        super().__init__(jobs)
        self._request = request

    def body(self) -> dict[str, object]:
        """The list object. Raises BadInput when other dimensions were asked for than the model's, EngineFailed when
        these are not vectors of all inputs."""
        items = sorted(self._items, key=lambda item: item.index)
        self._check(items)
        data = [{"object": "embedding", "index": i.index, "embedding": self._vector(i.piece)} for i in items]
        tokens = self._account.usage.prompt_tokens
        return {
            "object": "list",
            "data": data,
            "model": self._request.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "mesh": self._account.mesh,
        }

    def _check(self, items: list[Token]) -> None:
        sizes = {len(item.piece) for item in items}
        inputs = len(self._request.embedding.inputs)
        dimensions, rest = divmod(max(sizes, default=0), FLOAT_BYTES)
        if [item.index for item in items] != list(range(inputs)) or len(sizes) != 1 or rest or not dimensions:
            raise EngineFailed("the worker's vectors do not fit the inputs")
        if self._request.dimensions not in (None, dimensions):
            raise BadInput(f"the model's vectors have {dimensions} dimensions, and cannot be cut", param="dimensions")

    def _vector(self, piece: bytes) -> object:
        numbers = struct.unpack(f"<{len(piece) // FLOAT_BYTES}f", piece)
        if not all(map(math.isfinite, numbers)):
            raise EngineFailed("the worker's vectors hold what is no number")
        return base64.b64encode(piece).decode() if self._request.as_base64 else numbers


class WholeTokens(_Items):
    """The tokens of a text, or the text of tokens. Implements `chunks.Whole`."""

    def __init__(self, request: TokenizationRequest, jobs: Sequence[JobId]) -> None:
        super().__init__(jobs)
        self._request = request

    def body(self) -> dict[str, object]:
        """{"tokens", "count", "pieces"?} or {"text"}; a piece that is no whole character is a list of its bytes."""
        mesh = self._account.mesh
        if self._request.back:
            return {"text": b"".join(i.piece for i in self._items).decode(errors="replace"), "mesh": mesh}
        told: dict[str, object] = {"tokens": [i.id for i in self._items], "count": len(self._items)}
        if self._request.with_pieces:
            told["pieces"] = [_piece(item.piece) for item in self._items]
        return {**told, "mesh": mesh}


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
