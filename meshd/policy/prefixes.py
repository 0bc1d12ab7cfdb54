"""Which workers probably still hold the beginning of a prompt, from what this node sent where. Pure.

A worker that has computed a conversation's earlier turns answers the next one sooner than an idle stranger. Nobody
tells what is in his cache (that would tell what others ask), so the submitter goes by its own memory: the prompts that
it sent, as a chain of hashes by block. What it remembers may be gone from the worker; then the prompt is computed, as
it would be anywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

from meshd.core.generation import Prompt
from meshd.core.ids import NodeId

BLOCK_BYTES: Final = 256
"""About 64 tokens: as much in common is worth being counted."""

MAX_BLOCKS: Final = 512
"""Of one prompt; 128 KiB of text, more than the contexts of most models."""

MAX_ENTRIES: Final = 16_384
LIFE_S: Final = 600.0
"""An idle slot's contents last until others need it. Ten minutes is a pause in a conversation."""

BYTES_PER_TOKEN: Final = 4


class Prefixes:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self._workers: OrderedDict[bytes, tuple[NodeId, float]] = OrderedDict()

    def note(self, model: str, prompt: Prompt, worker: NodeId, now_s: float) -> None:
        """``worker`` has computed that prompt just now. The latest who did is remembered."""
        for link in _chain(model, prompt):
            self._workers[link] = (worker, now_s)
            self._workers.move_to_end(link)
        while len(self._workers) > MAX_ENTRIES:
            self._workers.popitem(last=False)

    def warm(self, model: str, prompt: Prompt, now_s: float) -> dict[NodeId, float]:
        """How many tokens of the prompt each worker probably holds; empty for most prompts."""
        found: dict[NodeId, float] = {}
        for number, link in enumerate(_chain(model, prompt), 1):
            known = self._workers.get(link)
            if known is None:
                break  # What follows hangs on this block: nobody can hold it either.
            worker, at_s = known
            if now_s - at_s <= LIFE_S:
                found[worker] = number * BLOCK_BYTES / BYTES_PER_TOKEN
        return found


def _chain(model: str, prompt: Prompt) -> Iterator[bytes]:
    """A hash for each whole block of the prompt, over everything up to its end."""
    link = model.encode()
    data = _bytes(prompt)
    for start in range(0, len(data) - BLOCK_BYTES + 1, BLOCK_BYTES):
        link = blake2b(link + data[start : start + BLOCK_BYTES], digest_size=12).digest()
        yield link


def _bytes(prompt: Prompt) -> bytes:
    """The first blocks of a prompt, such that one that goes on differs only where it goes on."""
    parts = [prompt.text or "", *(f"{m.role}\x00{m.content}\x00" for m in prompt.messages)]
    parts.append(",".join(str(token) for token in prompt.tokens))
    return "".join(parts)[: MAX_BLOCKS * BLOCK_BYTES].encode()[: MAX_BLOCKS * BLOCK_BYTES]
