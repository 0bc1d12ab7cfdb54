"""From requests to tokens and to the form that the answer must have, always in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from meshd.core.chat import Message as ChatMessage
from meshd.core.chat import Tool, ToolMode
from meshd.core.errors import BadInput
from meshd.core.generation import Generation, Prompt
from meshd.core.toolsyntax import syntax_of
from meshd.engine.answer import Calling, Constraint, Whole
from meshd.engine.constraint import Grammars, Vocabulary
from meshd.engine.decoding import Prepared
from meshd.engine.grammar import Offer, of_call, of_calls, of_format
from meshd.engine.marking import Marks
from meshd.engine.prompt import PLAIN_STOP, ChatTemplate, plain_chat, tools_of, turns_of


class Model(Vocabulary, Protocol):
    """What prompts need of a model; see llama.py."""

    def chat_template(self) -> str | None: ...

    def bos_text(self) -> str: ...

    def eos_text(self) -> str: ...

    def adds_bos(self) -> bool: ...

    def tokenize(self, text: str, *, start: bool, special: bool) -> list[int]: ...

    def piece(self, token: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Form:
    """The grammar that an answer is held to. ``opens``: it holds from where a call begins, not from the first token.
    ``param``: the field of the request that it comes from."""

    text: str
    param: str
    opens: bool = False


class Prompts:
    """The prompts of one model."""

    def __init__(self, model: Model, grammars: Grammars) -> None:
        self._model = model
        self._grammars = grammars
        source = model.chat_template()
        self._syntax = syntax_of(source or "")
        self._template: ChatTemplate | None = None
        self.broken: BadInput | None = None
        if source:
            try:
                self._template = ChatTemplate(source, model.bos_text(), model.eos_text())
            except BadInput as error:
                self.broken = error
        self.has_template = self._template is not None

    def form(self, request: Generation) -> Form | None:
        """The grammar of the answer; None when anything goes. Raises BadInput: no schema, or no way to call tools."""
        offer = self._offer(request)
        if offer is not None and offer.choice.mode is ToolMode.REQUIRED:
            return Form(of_calls(offer), "tools")
        if offer is not None:
            return Form(of_call(offer), "tools", opens=True)
        text = of_format(request.format)
        return None if text is None else Form(text, "response_format")

    def prepare(self, request: Generation) -> Prepared:
        """Tokens of the prompt, and what the answer must be. A plain text may spell control tokens (it is the app's
        own template); text inside chat messages and tools may not: it never ends a turn or opens another role.
        Raises BadInput."""
        offer = self._offer(request)
        prepared = self.prompt(request.prompt, () if offer is None else offer.tools)
        constraint = self._constraint(offer, self.form(request))
        if offer is None:
            return replace(prepared, constraint=constraint)
        marks = ((offer.opener, offer.syntax.opener), (offer.closer, offer.syntax.closer))
        shown = {token: text.encode() for token, text in marks if token is not None}
        return replace(prepared, constraint=constraint, shown=shown, tool_syntax=offer.syntax.name)

    def _constraint(self, offer: Offer | None, form: Form | None) -> Constraint | None:
        if form is None:
            return None
        first = self._grammars.matcher(form.text, form.param)
        if offer is None or not form.opens:
            return Whole(first)
        return Calling(offer, lambda: self._grammars.matcher(form.text, form.param))

    def prompt(self, prompt: Prompt, tools: Sequence[Tool] = ()) -> Prepared:
        """Tokens of ``prompt`` alone. Raises BadInput."""
        if prompt.tokens:
            self.check(prompt.tokens, "prompt")
            return Prepared(list(prompt.tokens))
        if prompt.text is not None:
            return Prepared(self._model.tokenize(prompt.text, start=True, special=True))
        if self.broken is not None:
            raise self.broken
        if self._template is None:
            plain = plain_chat(prompt.messages)
            return Prepared(self._model.tokenize(plain, start=True, special=False), (PLAIN_STOP,))
        return Prepared(self._chat(self._template, prompt.messages, tools))

    def check(self, tokens: Sequence[int], param: str) -> None:
        """Raise BadInput about ``param`` when a token is not in the vocabulary: llama.cpp takes ids at their word."""
        if any(not 0 <= token < self._model.vocab_tokens for token in tokens):
            raise BadInput(f"token ids of this model are below {self._model.vocab_tokens}", param=param)

    def _offer(self, request: Generation) -> Offer | None:
        """The tools that the model is shown; None for none. Raises BadInput when it cannot be shown any."""
        if not request.tools or not request.tool_choice.calls:
            return None
        if not request.prompt.messages:
            raise BadInput("tools go with messages", param="tools")
        if self._template is None or self._syntax is None:
            raise BadInput(
                "this model was not taught to call tools",
                param="tools",
                hint='choose a model whose chat template knows tools, or set tool_choice to "none"',
            )
        opener, closer = self._control(self._syntax.opener), self._control(self._syntax.closer)
        return Offer(self._syntax, request.tools, request.tool_choice, opener, closer)

    def _control(self, text: str) -> int | None:
        """The control token that ``text`` is in this vocabulary; None when it is plain text."""
        tokens = self._model.tokenize(text, start=False, special=True) if text else []
        return tokens[0] if len(tokens) == 1 and not self._model.piece(tokens[0]) else None

    def _chat(self, template: ChatTemplate, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[int]:
        texts = _texts(messages, tools)
        if not self._spells_control("\n".join(texts)):
            rendered = template.render(turns_of(messages), tools_of(tools))
            return self._model.tokenize(self._without_bos(rendered), start=True, special=True)
        marks = Marks(texts)
        text = self._marker(marks)
        rendered = template.render(turns_of(messages, text), tools_of(tools, text), marks)
        tokens: list[int] = []
        for part, own in marks.split(self._without_bos(rendered)):
            tokens += self._model.tokenize(part, start=not tokens, special=own)
        return tokens

    def _marker(self, marks: Marks) -> Callable[[str], str]:
        return lambda text: marks.place(text) if self._spells_control(text) else text

    def _without_bos(self, text: str) -> str:
        """Tokenising puts the beginning-of-text in front; a template that writes it too must not double it."""
        return text.removeprefix(self._model.bos_text()) if self._model.adds_bos() else text

    def _spells_control(self, content: str) -> bool:
        plain = self._model.tokenize(content, start=False, special=False)
        return plain != self._model.tokenize(content, start=False, special=True)


def _texts(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[str]:
    """Everything that people wrote."""
    texts: list[str] = []

    def note(text: str) -> str:
        texts.append(text)
        return text

    turns_of(messages, note)
    tools_of(tools, note)
    return texts
