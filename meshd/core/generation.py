"""What to generate: prompt, sampling, stops, and what comes back token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from meshd.core import limits
from meshd.core.chat import Message, Tool, ToolChoice, size_bytes
from meshd.core.errors import BadInput

ID_BYTES = 4
"""A token id on the wire; also about the text that one token stands for."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Exactly one of: plain ``text`` to continue, chat ``messages`` for the model's template, ``tokens`` by id."""

    text: str | None = None
    messages: tuple[Message, ...] = ()
    tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if (self.text is not None) + bool(self.messages) + bool(self.tokens) != 1:
            raise BadInput("give a text, at least one message, or at least one token", param="messages")
        if len(self.messages) > limits.MAX_MESSAGES:
            raise BadInput(f"more than {limits.MAX_MESSAGES} messages", param="messages")
        if any(not 0 <= token < 2**31 for token in self.tokens):
            raise BadInput("a token id is a whole number between 0 and 2^31 - 1", param="prompt")
        if self.size_bytes() > limits.MAX_PROMPT_BYTES:
            raise BadInput(f"prompt larger than {limits.MAX_PROMPT_BYTES} bytes", param="messages")

    def size_bytes(self) -> int:
        """UTF-8 size of all text in the prompt; four bytes a token where it came as tokens."""
        text_bytes = 0 if self.text is None else size_bytes(self.text, "messages")
        return text_bytes + sum(m.size_bytes() for m in self.messages) + ID_BYTES * len(self.tokens)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise BadInput(f"{name} must be between {low:g} and {high:g}", param=name)


@dataclass(frozen=True, slots=True)
class Bias:
    """Added to the logit of ``token`` before it is judged; -100 practically forbids it, 100 forces it."""

    token: int
    bias: float

    def __post_init__(self) -> None:
        _within("logit_bias", self.bias, -100, 100)
        if not 0 <= self.token < 2**31:
            raise BadInput("logit_bias names a token that cannot be", param="logit_bias")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. ``temperature`` 0 is greedy. ``seed`` is always set: randomness is a
    function of (seed, token index), so that a resumed answer draws as the undisturbed one would."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    biases: tuple[Bias, ...] = ()

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0, 5)
        _within("top_p", self.top_p, 0, 1)
        _within("top_k", self.top_k, 0, 1_000_000)
        _within("min_p", self.min_p, 0, 1)
        _within("presence_penalty", self.presence_penalty, -2, 2)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        if not 0 <= self.seed < 2**63:
            raise BadInput("seed must be a whole number between 0 and 2^63 - 1", param="seed")
        if len(self.biases) > limits.MAX_BIASES:
            raise BadInput(f"logit_bias has at most {limits.MAX_BIASES} entries", param="logit_bias")
        if len({b.token for b in self.biases}) != len(self.biases):
            raise BadInput("logit_bias names a token twice", param="logit_bias")


class FormatKind(StrEnum):
    """What an answer's text must be: anything, some JSON object, or JSON that a schema allows."""

    TEXT = "text"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"


@dataclass(frozen=True, slots=True)
class Format:
    """The form that the whole answer must have. ``schema``: JSON text, exactly for ``JSON_SCHEMA``."""

    kind: FormatKind = FormatKind.TEXT
    schema: str = ""

    def __post_init__(self) -> None:
        if bool(self.schema) != (self.kind is FormatKind.JSON_SCHEMA):
            raise BadInput("a schema goes with json_schema, and only with it", param="response_format")
        if size_bytes(self.schema, "response_format") > limits.MAX_SCHEMA_BYTES:
            raise BadInput(f"a schema has at most {limits.MAX_SCHEMA_BYTES} bytes", param="response_format")


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation as the app asked for it. ``max_tokens`` None: until the context is full. ``top_logprobs``: how
    many alternatives each token is told with (0: only its own probability); None: none at all."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    exact: bool = False
    top_logprobs: int | None = None
    format: Format = Format()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)

    def __post_init__(self) -> None:
        self._check_tools()
        if self.top_logprobs is not None:
            _within("top_logprobs", self.top_logprobs, 0, limits.MAX_TOP_LOGPROBS)
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, 1, limits.MAX_OUTPUT_TOKENS)
        if len(self.stop) > limits.MAX_STOPS:
            raise BadInput(f"more than {limits.MAX_STOPS} stop strings", param="stop")
        for s in self.stop:
            if not 1 <= size_bytes(s, "stop") <= limits.MAX_STOP_BYTES:
                raise BadInput(f"a stop string has 1 to {limits.MAX_STOP_BYTES} bytes", param="stop")

    def _check_tools(self) -> None:
        if len(self.tools) > limits.MAX_TOOLS:
            raise BadInput(f"more than {limits.MAX_TOOLS} tools", param="tools")
        names = {tool.name for tool in self.tools}
        if len(names) != len(self.tools):
            raise BadInput("two tools have one name", param="tools")
        self.tool_choice.check(names)
        if self.tools and self.tool_choice.calls and self.format.kind is not FormatKind.TEXT:
            raise BadInput(
                "tools and response_format contradict each other: a call is not an answer in that format",
                param="response_format",
                hint='leave one out, or set tool_choice to "none"',
            )


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that might have stood in this place, and the natural logarithm of its probability."""

    id: int
    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Score:
    """How probable the model thought a token before sampling bent anything: natural logarithms. ``top``: the most
    probable tokens, best first."""

    logprob: float
    top: tuple[Alternative, ...] = ()

    def __post_init__(self) -> None:
        if len(self.top) > limits.MAX_TOP_LOGPROBS:
            raise BadInput("too many alternatives", param="top_logprobs")


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: its place in the answer (from 0), its id, and the bytes it stands for.

    ``piece`` is raw: a character may be spread over several tokens, so it need not be valid UTF-8. ``score`` only
    where the request asked for it. Other work speaks in tokens, too: see `core.job`.
    """

    index: int
    id: int
    piece: bytes
    score: Score | None = None


class FinishReason(StrEnum):
    """Why a generation ended: ``stop`` (end of text or stop string) or ``length`` (max_tokens or context)."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Opening:
    """What an engine says of a request once it has the prompt. ``stops``: the stop strings that the model's template
    implies, besides the app's own. ``cached_tokens``: how much of the prompt needed no computing. ``tool_syntax``:
    how the model writes calls of tools (see `core.toolsyntax`), empty when it was offered none."""

    prompt_tokens: int
    stops: tuple[str, ...] = ()
    cached_tokens: int = 0
    tool_syntax: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.cached_tokens <= self.prompt_tokens:
            raise BadInput("token counts out of range")
        if len(self.stops) > limits.MAX_STOPS or any(len(s) > limits.MAX_STOP_BYTES for s in self.stops):
            raise BadInput("too many or too long stop strings")
        if len(self.tool_syntax) > 40:
            raise BadInput("no such syntax of calls")


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a finished job, as OpenAI's ``usage`` has them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
