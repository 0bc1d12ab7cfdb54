"""The body of /v1/completions to a request of ours. Pure: no clock, no randomness."""

from __future__ import annotations

from meshd.api import parse_options as options
from meshd.api.asked import TextRequest
from meshd.api.fields import Fields
from meshd.api.parse_inputs import prompts_of
from meshd.core import limits
from meshd.core.errors import BadInput
from meshd.core.generation import Generation, Prompt

DEFAULT_MAX_TOKENS = 16
"""What is generated when max_tokens is absent, as OpenAI's does."""

MAX_PROMPTS = 16
"""Prompts of one request: each is answered by jobs of its own."""

MAX_LOGPROBS = 5
"""Alternatives a token in the shape that this route has, as OpenAI's does."""

_NEUTRAL: dict[str, tuple[object, ...]] = {"suffix": ("",)}


def parse_completion(body: object) -> TextRequest:
    """The completion request in a decoded JSON ``body``. Raises only BadInput, the sender's fault."""
    fields = Fields(body)
    fields.ignore(*options.IGNORED)
    options.refuse_meaningful(fields, _NEUTRAL)
    model = fields.required_text("model", max_chars=200)
    prompts = prompts_of(fields, "prompt", MAX_PROMPTS)
    constraints, exact = options.mesh_of(fields)
    sampling, seed = options.sampling_of(fields)
    given = fields.integer("max_tokens", 1, limits.MAX_OUTPUT_TOKENS)
    max_tokens = DEFAULT_MAX_TOKENS if given is None else given
    stop = options.stop_of(fields)
    top_logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)
    echo = _echo(fields, prompts, top_logprobs)
    n = _choices(fields)
    stream, include_usage = options.stream_of(fields)
    fields.finish(options.HINT)
    generations = tuple(Generation(prompt, sampling, max_tokens, stop, exact, top_logprobs) for prompt in prompts)
    return TextRequest(model, generations, seed, constraints, stream, n, include_usage, echo)


def _echo(fields: Fields, prompts: tuple[Prompt, ...], top_logprobs: int | None) -> bool:
    echo = fields.boolean("echo") or False
    if echo and top_logprobs is not None:
        raise BadInput(
            "echo with logprobs is not supported: the prompt's own probabilities are not computed",
            param="echo",
            hint="leave out echo or logprobs",
        )
    if echo and any(prompt.text is None for prompt in prompts):
        raise BadInput("echo repeats text only, and the prompt is tokens", param="echo", hint="send the prompt as text")
    return echo


def _choices(fields: Fields) -> int:
    n = fields.integer("n", 1, options.MAX_CHOICES) or 1
    best_of = fields.integer("best_of", 1, options.MAX_CHOICES)
    if best_of not in (None, n):
        raise BadInput(
            "best_of other than n is not supported: answers are not ranked", param="best_of", hint="ask for n answers"
        )
    return n
