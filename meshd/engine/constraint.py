"""What may come next in a constrained answer, token by token: the only module that knows llguidance.

A grammar is compiled once and kept; every answer gets a copy of it in its first state, and every token of the answer,
delivered ones included, is taken by it. So its state is a function of the answer alone, on any worker.

llguidance is imported at the first constrained request: an engine that never gets one does not pay for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from meshd.core.errors import BadInput
from meshd.engine.sampling import Logits

_KEPT_GRAMMARS: Final = 32
"""Apps ask with a handful of schemas again and again."""

_MAX_REASON_CHARS: Final = 200
_LEXER_STATES: Final = 50_000
"""Up to 2 KiB each: a grammar may take 100 MB at the very most."""

_SPECIAL: Final = b"\xff"
"""How llguidance is told that a token is no text: only a grammar that names its id admits it."""


class Vocabulary(Protocol):
    """What a constraint needs of a model; see llama.py."""

    vocab_tokens: int

    def pieces(self) -> list[bytes]: ...

    def ends(self, token: int) -> bool: ...


class _Alphabet:
    """A model's tokens as llguidance wants them. Made once: a quarter of a million tokens take a second."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import llguidance

        self.size = vocabulary.vocab_tokens
        pieces = vocabulary.pieces()
        ends = [token for token in range(self.size) if vocabulary.ends(token)]
        self.ends = np.array(ends, dtype=np.int64)
        self.bytes = _single_bytes(pieces)
        blind = {*ends, *(token for token, piece in enumerate(pieces) if not piece)}
        # Without an end of its own the model gets one beyond its vocabulary, which it can never draw.
        self.tokens = [_SPECIAL + b"[%d]" % i if i in blind else piece for i, piece in enumerate(pieces)]
        self.eos_token_id = ends[0] if ends else self.size
        self.tokens += [] if ends else [_SPECIAL + b"[end]"]
        self.bos_token_id = None
        self.special_token_ids = sorted({*blind, self.eos_token_id})
        self.library = llguidance
        slices = llguidance.LLTokenizer.json_slices()
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self), slices=slices)
        self.tokens = []

    def __call__(self, text: bytes) -> list[int]:
        """A tokenisation, byte by byte: llguidance wants one for hints that are not used here."""
        return [self.bytes[byte] for byte in text if byte in self.bytes]


def _single_bytes(pieces: list[bytes]) -> dict[int, int]:
    return {piece[0]: token for token, piece in reversed(list(enumerate(pieces))) if len(piece) == 1}


class Matcher:
    """Where one answer stands in its grammar. ``param``: the field of the request that the grammar comes from."""

    def __init__(self, inner: Any, alphabet: _Alphabet, param: str) -> None:
        self._inner = inner
        self._alphabet = alphabet
        self._param = param

    @property
    def complete(self) -> bool:
        """Nothing may follow."""
        return bool(self._inner.is_stopped())

    def narrow(self, logits: Logits) -> None:
        """Leave only what may come next; an end of text only where the grammar is fulfilled. Raises BadInput when
        the grammar grew beyond its bounds."""
        bits = np.frombuffer(self._inner.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed: npt.NDArray[np.bool_] = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(np.bool_)
        allowed[self._alphabet.ends] = self._inner.is_accepting()
        logits[~allowed] = -np.inf

    def take(self, token: int) -> bool:
        """Go on by ``token``; False, and no step, when it may not come here."""
        return bool(self._inner.try_consume_tokens([token]) == 1)

    def feed(self, data: bytes) -> bool:
        """Go on by ``data``, whatever tokens it came in; False when it may not come here (then use no more)."""
        known = self._alphabet.bytes
        if any(byte not in known for byte in data):
            return False
        return bool(self._inner.try_consume_tokens([known[byte] for byte in data]) == len(data))

    def _check(self) -> None:
        if self._inner.is_error():
            raise BadInput(_reason(self._inner.get_error()), param=self._param)


class Grammars:
    """The compiled grammars of one model. ``warm`` may run in another thread; the rest belongs to one."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._alphabet: _Alphabet | None = None
        self._making_alphabet = threading.Lock()
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def known(self, text: str) -> bool:
        """Whether a matcher of that grammar costs nothing any more."""
        return text in self._compiled

    def warm(self, text: str) -> None:
        """Compile the grammar and keep what came of it, be it an error. Up to a second or two, without the
        interpreter's lock for the most part. Raises BadInput when this model's answers cannot be constrained."""
        alphabet = self._letters()
        bounds = alphabet.library.LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)
        grammar = alphabet.library.LLMatcher.grammar_from_lark(text)
        self._compiled[text] = alphabet.library.LLMatcher(alphabet.tokenizer, grammar, log_level=0, limits=bounds)

    def trim(self) -> None:
        """Forget the grammars unused for the longest time, beyond those that are kept."""
        while len(self._compiled) > _KEPT_GRAMMARS:
            self._compiled.popitem(last=False)

    def matcher(self, text: str, param: str) -> Matcher:
        """A matcher in its first state. Raises BadInput about ``param`` for a grammar that does not compile."""
        if text not in self._compiled:
            self.warm(text)
        self._compiled.move_to_end(text)
        self.trim()
        inner = self._compiled[text]
        if inner.is_error():
            raise BadInput(_reason(inner.get_error()), param=param)
        return Matcher(inner.deep_copy(), self._letters(), param)

    def _letters(self) -> _Alphabet:
        with self._making_alphabet:
            if self._alphabet is None:
                self._alphabet = self._new_alphabet()
            return self._alphabet

    def _new_alphabet(self) -> _Alphabet:
        try:
            return _Alphabet(self._vocabulary)
        except (ValueError, TypeError, RuntimeError) as error:
            # A vocabulary comes with its file. One that llguidance dislikes costs constrained requests, nothing else.
            raise BadInput(f"answers of this model cannot be constrained: {error}", param="response_format") from None


def _reason(error: str) -> str:
    """llguidance's reason without its excerpt of the grammar, which is ours."""
    lines = [line.strip() for line in error.split("\n   1 | ")[0].split("\n")]
    text = " ".join(line for line in lines if line).split("failed to compile JSON schema: ")[-1]
    return f"the schema cannot be enforced: {text[:_MAX_REASON_CHARS]}"
