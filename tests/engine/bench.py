"""The engine without its process: the real decoding over a real model, in this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshd.core.generation import Generation, Token
from meshd.core.job import Work
from meshd.engine.decoding import Decoding
from meshd.engine.llama import LlamaModel, LoadPlan
from meshd.engine.prompts import Prompts
from meshd.engine.scores import scored_tokens
from meshd.engine.works import Works

SLOTS = 3
CHUNK_TOKENS = 32


@dataclass
class Result:
    """What came of a piece of work. ``refused``: code, text and param."""

    tokens: list[Token] = field(default_factory=list)
    reason: str = ""
    prompt_tokens: int = 0
    syntax: str = ""
    refused: tuple[str, str, str | None] | None = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def data(self) -> bytes:
        return b"".join(token.piece for token in self.tokens)

    @property
    def text(self) -> str:
        return self.data.decode()

    def take(self, message: list[Any]) -> None:
        match message:
            case ["started", _, int(prompt_tokens), list(_), int(_), str(syntax)]:
                self.prompt_tokens, self.syntax = prompt_tokens, syntax
            case ["tokens", _, int(first), list(tokens)]:
                self.tokens += [Token(first + i, id, piece) for i, (id, piece) in enumerate(tokens)]
            case ["scored", _, int(first), list(tokens)]:
                self.tokens += scored_tokens(first, tokens)
            case ["finished", _, str(reason)]:
                self.reason = reason
            case ["refused", _, code, text, param]:
                self.refused = (code, text, param)
            case _:
                raise AssertionError(message)


class Bench:
    """One model and all its work."""

    def __init__(self, path: Path, context_tokens: int = 2048) -> None:
        self.model = LlamaModel(LoadPlan(str(path), SLOTS, context_tokens, 128, 1, 0))
        self.warmed: list[int] = []
        self.works = Works(self.model, self._decoding, self.warmed.append, max_jobs=2)
        self._next_id = 0

    def _decoding(self, prompts: Prompts) -> Decoding:
        return Decoding(self.model, prompts.prepare, slots=SLOTS, prefill_chunk_tokens=CHUNK_TOKENS)

    def generate(self, request: Generation, delivered: Sequence[Token] = ()) -> Result:
        """The whole answer, its grammar compiled where it is needed; indexes without a gap."""
        decoding = self.works.decoding
        result = Result()
        self._next_id += 1
        for message in decoding.start(self._next_id, request, [token.id for token in delivered]):
            result.take(message)
        while feeds := decoding.next_step():
            for message in decoding.step(feeds):
                result.take(message)
                decoding.acknowledge(self._next_id, 1)
        first = len(delivered)
        assert [token.index for token in result.tokens] == list(range(first, first + len(result.tokens)))
        assert not decoding.busy
        return result

    def aside(self, work: Work, delivered: Sequence[Token] = ()) -> Result:
        """Work that is no generation, read as fast as it comes."""
        self._next_id += 1
        id, result = self._next_id, Result()
        messages: list[Any] | None = self.works.start(id, work, [token.id for token in delivered], 0.0)
        while messages is not None:
            for message in messages:
                result.take(message)
                if message[0] == "tokens":
                    self.works.acknowledge(id, len(message[3]))
            messages = self.works.step_aside()
        assert not self.works.busy
        return result
