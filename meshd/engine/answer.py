"""What an answer must be: constrained from its first token, or from where it begins to call a tool.

``take`` is told every token of the answer, delivered ones included. It says no to a token that would break the form;
another one must then be drawn in its place, by the same random number, so that every worker draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from meshd.core import limits
from meshd.engine.constraint import Matcher
from meshd.engine.grammar import Offer
from meshd.engine.sampling import Logits


class Constraint(Protocol):
    """The form of one answer."""

    @property
    def complete(self) -> bool: ...

    def narrow(self, logits: Logits) -> None: ...

    def take(self, token: int, piece: bytes) -> bool: ...


class Whole:
    """The answer follows a grammar from its first token."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Nothing may follow."""
        return self._matcher.complete

    def narrow(self, logits: Logits) -> None:
        """Leave only what may come next. Raises BadInput when the grammar grew beyond its bounds."""
        self._matcher.narrow(logits)

    def take(self, token: int, piece: bytes) -> bool:
        """Count the token in; False when it may not come here."""
        return self._matcher.take(token)


class Calling:
    """Free text until the model opens a call; the call follows its grammar; then free text again, where the syntax
    and the request allow a further call."""

    def __init__(self, offer: Offer, matcher: Callable[[], Matcher]) -> None:
        self._opener = offer.syntax.opener.encode()
        self._more = offer.choice.parallel and bool(self._opener) and not offer.syntax.listed
        self._new_matcher = matcher
        self._matcher: Matcher | None = None
        self._free = False
        self._text = b""
        self._calls = 0
        self.complete = False

    def narrow(self, logits: Logits) -> None:
        """Leave only what may come next, inside a call. Raises BadInput when the grammar grew beyond its bounds."""
        if self._matcher is not None:
            self._matcher.narrow(logits)

    def take(self, token: int, piece: bytes) -> bool:
        """Count the token in; False when it may not come here: it would open a call that is none."""
        if self._matcher is not None:
            return self._matcher.take(token) and self._inside(self._matcher)
        text = self._text + piece
        begun = self._begun(text)
        if begun is None:
            self._text = text[-(len(self._opener) - 1) :] if self._opener else text.strip()[:1]
            self._free = self._free or (not self._opener and bool(self._text))
            return True
        matcher = self._new_matcher()
        return matcher.feed(begun) and self._inside(matcher)

    def _begun(self, text: bytes) -> bytes | None:
        """What of ``text`` belongs to a call after its opener; None when no call begins in it."""
        if self._opener:
            _, opener, rest = text.partition(self._opener)
            return rest if opener else None
        # The call is the whole answer, without an opener: the first character decides.
        begun = text.lstrip()
        return begun if begun.startswith(b"{") and not self._free else None

    def _inside(self, matcher: Matcher) -> bool:
        self._matcher, self._text = matcher, b""
        if matcher.complete:
            self._matcher = None
            self._calls += 1
            self.complete = not self._more or self._calls >= limits.MAX_TOOLS
        return True
