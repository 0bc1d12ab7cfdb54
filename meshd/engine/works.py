"""Everything that one model is asked for: generations, embeddings, tokenisations. Each goes to whom it concerns."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, Protocol

from meshd.core.ad import ABILITIES_OF_A_FILE, Ability
from meshd.core.errors import BadInput, MeshError
from meshd.core.generation import Generation
from meshd.core.job import Embedding, Tokenization, Work
from meshd.engine.constraint import Grammars
from meshd.engine.decoding import Decoding, refusal
from meshd.engine.embedding import Embeddings, Vectors, embeds
from meshd.engine.frames import Message
from meshd.engine.prompts import Model, Prompts
from meshd.engine.tokenising import Tokenising
from meshd.engine.warming import Warming

_UNFORESEEN = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


class WholeModel(Model, Protocol):
    """A model with all that it can do; see llama.py."""

    generates: bool
    pooling: str | None
    width: int

    def text(self, token: int) -> bytes: ...

    def vectors(self, threads: int) -> Any: ...


class Works:
    """The work of one model. ``tell`` says, from another thread, that ``warm`` should be called with that id."""

    def __init__(
        self, model: WholeModel, decoding: Callable[[Prompts], Decoding], tell: Callable[[int], None], max_jobs: int
    ) -> None:
        self._model = model
        self._grammars = Grammars(model)
        self.prompts = Prompts(model, self._grammars)
        self.decoding = decoding(self.prompts)
        self._warming = Warming(self._grammars, tell)
        self._embeddings = Embeddings(self._open_vectors, self._inputs, max_jobs)
        self._tokenising = Tokenising(self._tokens, model.text, max_jobs)
        self._threads = 1
        self._vectors: Any = None

    @property
    def abilities(self) -> tuple[Ability, ...]:
        """What this model can be asked for."""
        able = ABILITIES_OF_A_FILE if self._model.generates else (Ability.EMBED, Ability.TOKENIZE)
        can_embed = embeds(self._model.pooling, self._model.width)
        return tuple(ability for ability in able if can_embed or ability is not Ability.EMBED)

    @property
    def busy(self) -> bool:
        """Whether anything is unfinished."""
        return self.decoding.busy or self._warming.busy or self._embeddings.busy or self._tokenising.busy

    def set_threads(self, threads: int) -> None:
        """Compute vectors with so many threads from the next step on."""
        self._threads = threads
        if self._vectors is not None:
            self._vectors.set_threads(threads)

    def _open_vectors(self) -> Vectors:
        self._vectors = self._model.vectors(self._threads)
        opened: Vectors = self._vectors
        return opened

    def start(self, id: int, work: Work, delivered: list[int], now_s: float, owner: str = "") -> list[Message]:
        """Admit a piece of work of ``owner``, or refuse it; nothing yet where a grammar must be compiled first."""
        return self._prepared(id, lambda: self._start(id, work, delivered, now_s, owner))

    def _prepared(self, id: int, prepare: Callable[[], list[Message]]) -> list[Message]:
        """What ``prepare`` says. It touches no state of llama.cpp, so what nobody foresaw in a request costs that
        request and not the engine, and is not tried on the next machine."""
        try:
            return prepare()
        except MeshError as error:
            return [refusal(id, error)]
        except _UNFORESEEN as error:
            traceback.print_exc()
            return [refusal(id, BadInput(f"this request cannot be prepared ({type(error).__name__})"))]

    def _start(self, id: int, work: Work, delivered: list[int], now_s: float, owner: str) -> list[Message]:
        if isinstance(work, Tokenization):
            return self._tokenising.start(id, work, delivered)
        needed = Ability.EMBED if isinstance(work, Embedding) else Ability.GENERATE
        if needed not in self.abilities:
            return [refusal(id, BadInput(f"this model cannot {needed}", param="model"))]
        if isinstance(work, Embedding):
            return self._embeddings.start(id, work, delivered)
        if self._warms(id, work, delivered, now_s, owner):
            return []
        return self.decoding.start(id, work, delivered, owner)

    def _warms(self, id: int, work: Generation, delivered: list[int], now_s: float, owner: str) -> bool:
        form = self.prompts.form(work)
        if form is None or self._grammars.known(form.text):
            return False
        self._warming.begin(id, work, delivered, form, now_s, owner)
        return True

    def warm(self, id: int) -> list[Message]:
        """The grammar for that generation is compiled: start it, if it still waits."""
        waiting = self._warming.take(id)
        if waiting is None:  # cancelled: what was compiled for it counts among those that are kept
            self._grammars.trim()
            return []
        return self._prepared(id, lambda: self.decoding.start(id, waiting.request, waiting.delivered, waiting.owner))

    def overdue(self, now_s: float) -> list[Message]:
        """Refusals of generations that waited too long for their grammar."""
        return [refusal(id, error) for id, error in self._warming.overdue(now_s)]

    def cancel(self, id: int) -> None:
        """Forget that work now. Unknown ids are ignored."""
        self._warming.take(id)
        for part in (self.decoding, self._embeddings, self._tokenising):
            part.cancel(id)

    def acknowledge(self, id: int, tokens: int) -> None:
        """The reader took so many more tokens."""
        for part in (self.decoding, self._embeddings, self._tokenising):
            part.acknowledge(id, tokens)

    def step_aside(self) -> list[Message] | None:
        """A small step of what is not decoding; None when there is nothing to do."""
        told = self._tokenising.step()
        computed = self._embeddings.step()
        return None if told is None and computed is None else [*(told or []), *(computed or [])]

    def _inputs(self, work: Embedding) -> list[list[int]]:
        texts = []
        for prompt in work.inputs:
            if prompt.messages:
                raise BadInput("an input is a text or a list of tokens", param="input")
            self.prompts.check(prompt.tokens, "input")
            text = prompt.text or ""
            texts.append(list(prompt.tokens) or self._model.tokenize(text, start=True, special=False))
        return texts

    def _tokens(self, work: Tokenization) -> list[int]:
        if work.prompt.tokens:
            self.prompts.check(work.prompt.tokens, "tokens")
            return list(work.prompt.tokens)
        if work.prompt.text is None:
            return self.prompts.prompt(work.prompt).tokens
        return self._model.tokenize(work.prompt.text, start=work.special, special=True)
