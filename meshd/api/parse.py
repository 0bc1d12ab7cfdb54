"""The bodies of /v1/chat/completions and /v1/completions to a request of ours. Pure: no clock, no randomness.

What is not understood is refused by name. What is understood and would change the answer, but is not done yet, is
refused as "not supported yet". Only fields that cannot change the answer are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshd.api.fields import Fields, check_text
from meshd.core import limits
from meshd.core.chat import Message
from meshd.core.classes import DataClass, Region
from meshd.core.errors import BadInput
from meshd.core.generation import Generation, Prompt, Sampling
from meshd.core.ids import JobId
from meshd.core.job import Constraints, Job, TaskKind

COMPLETION_MAX_TOKENS = 16
"""What /v1/completions generates when max_tokens is absent, as OpenAI's does."""

_IGNORED = (
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "prediction",
)
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_NEUTRAL_CHAT = {**_NEUTRAL, "logprobs": (False,)}
_NEUTRAL_COMPLETION = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "logprobs": (),
}
_NEUTRAL_MESSAGE: dict[str, tuple[object, ...]] = {
    "tool_calls": ([],),
    "function_call": (),
    "audio": (),
    "refusal": (),
}
_HINT = "remove it; the fields of OpenAI's API and the object 'mesh' are understood"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A parsed request of either generation route. ``seed`` None: the app named none, the node draws one.
    ``generation.sampling.seed`` counts only when ``seed`` is set."""

    chat: bool
    model: str
    generation: Generation
    seed: int | None
    constraints: Constraints
    stream: bool
    include_usage: bool

    def job(self, id: JobId, seed: int) -> Job:
        """The job this asks for; ``seed`` is used when the app named none."""
        sampling = replace(self.generation.sampling, seed=seed if self.seed is None else self.seed)
        generation = replace(self.generation, sampling=sampling)
        return Job(id, TaskKind.GENERATE, self.model, generation, self.constraints)


def parse_chat(body: object) -> ChatRequest:
    """The chat request in a decoded JSON ``body``. Raises only BadInput, the sender's fault."""
    fields = Fields(body)
    _refuse_meaningful(fields, _NEUTRAL_CHAT)
    prompt = Prompt(messages=_messages(fields.raw("messages")))
    return _request(fields, True, prompt, _chat_max_tokens(fields))


def parse_completion(body: object) -> ChatRequest:
    """The completion request in a decoded JSON ``body``. Raises only BadInput, the sender's fault."""
    fields = Fields(body)
    _refuse_meaningful(fields, _NEUTRAL_COMPLETION)
    prompt = Prompt(text=_prompt_text(fields.raw("prompt")))
    given = fields.integer("max_tokens", 1, limits.MAX_OUTPUT_TOKENS)
    return _request(fields, False, prompt, COMPLETION_MAX_TOKENS if given is None else given)


def _request(fields: Fields, chat: bool, prompt: Prompt, max_tokens: int | None) -> ChatRequest:
    fields.ignore(*_IGNORED)
    model = fields.required_text("model", max_chars=200)
    seed = fields.integer("seed", 0, 2**63 - 1)
    constraints, exact = _mesh(fields.raw("mesh"))
    generation = Generation(prompt, _sampling(fields, seed or 0), max_tokens, _stop(fields), exact)
    stream = fields.boolean("stream") or False
    include_usage = _include_usage(fields.raw("stream_options"), stream)
    fields.finish(_HINT)
    return ChatRequest(chat, model, generation, seed, constraints, stream, include_usage)


def _refuse_meaningful(fields: Fields, neutral: dict[str, tuple[object, ...]]) -> None:
    """Let pass only the values that ask for nothing. Types must match: ``True`` is not the number 1."""
    for name, values in neutral.items():
        value = fields.raw(name)
        if value is not None and not any(type(value) is type(v) and value == v for v in values):
            raise BadInput(f"{fields.param(name)} is not supported yet", param=fields.param(name), hint="leave it out")


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise BadInput("messages must be a list of at least one message", param="messages")
    if len(value) > limits.MAX_MESSAGES:
        raise BadInput(f"more than {limits.MAX_MESSAGES} messages", param="messages")
    return tuple(_message(item, f"messages[{i}].") for i, item in enumerate(value))


def _message(value: object, prefix: str) -> Message:
    fields = Fields(value, prefix=prefix)
    _refuse_meaningful(fields, _NEUTRAL_MESSAGE)
    fields.ignore("name", "annotations")
    role = fields.required_text("role", max_chars=20)
    if role in ("tool", "function"):
        raise BadInput("messages of tools are not supported yet", param=fields.param("role"))
    if role not in ("system", "developer", "user", "assistant"):
        raise BadInput("unknown role", param=fields.param("role"), hint="one of: system, developer, user, assistant")
    content = _content(fields.raw("content"), fields.param("content"))
    fields.finish()
    return Message(role, content)


def _content(value: object, param: str) -> str:
    if isinstance(value, str):
        return check_text(value, param)
    if not isinstance(value, list):
        raise BadInput(f"{param} must be a string or a list of text parts", param=param)
    if len(value) > limits.MAX_MESSAGES:
        raise BadInput(f"{param} has more than {limits.MAX_MESSAGES} parts", param=param)
    return "".join(_text_part(part, f"{param}[{i}].") for i, part in enumerate(value))


def _text_part(value: object, prefix: str) -> str:
    fields = Fields(value, prefix=prefix)
    if fields.raw("type") != "text":
        raise BadInput(f"{fields.param('type')}: only text parts are supported yet", param=fields.param("type"))
    text = fields.text("text", max_chars=limits.MAX_PROMPT_BYTES)
    fields.finish()
    if text is None:
        raise BadInput(f"{fields.param('text')} is required", param=fields.param("text"))
    return text


def _prompt_text(value: object) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, list):
        raise BadInput(
            "prompt must be one string: token arrays and several prompts are not supported yet", param="prompt"
        )
    if not isinstance(value, str):
        raise BadInput("prompt must be a string", param="prompt")
    if len(check_text(value, "prompt").encode()) > limits.MAX_PROMPT_BYTES:
        raise BadInput(f"prompt larger than {limits.MAX_PROMPT_BYTES} bytes", param="prompt")
    return value


def _chat_max_tokens(fields: Fields) -> int | None:
    old = fields.integer("max_tokens", 1, limits.MAX_OUTPUT_TOKENS)
    new = fields.integer("max_completion_tokens", 1, limits.MAX_OUTPUT_TOKENS)
    if old is not None and new is not None and old != new:
        raise BadInput("max_tokens and max_completion_tokens differ", param="max_tokens", hint="give one of them")
    return old if new is None else new


def _sampling(fields: Fields, seed: int) -> Sampling:
    plain = Sampling()

    def number(name: str, low: float, high: float, default: float) -> float:
        value = fields.number(name, low, high)
        return default if value is None else value

    return Sampling(
        temperature=number("temperature", 0, 5, plain.temperature),
        top_p=number("top_p", 0, 1, plain.top_p),
        top_k=fields.integer("top_k", 0, 1_000_000) or 0,
        min_p=number("min_p", 0, 1, plain.min_p),
        presence_penalty=number("presence_penalty", -2, 2, plain.presence_penalty),
        frequency_penalty=number("frequency_penalty", -2, 2, plain.frequency_penalty),
        seed=seed,
    )


def _stop(fields: Fields) -> tuple[str, ...]:
    if isinstance(fields.raw("stop"), str):
        text = fields.text("stop", max_chars=limits.MAX_STOP_BYTES)
        return () if text is None else (text,)
    return fields.texts("stop", max_items=limits.MAX_STOPS, max_chars=limits.MAX_STOP_BYTES)


def _include_usage(value: object, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise BadInput("stream_options goes with stream: true only", param="stream_options")
    fields = Fields(value, prefix="stream_options.")
    include = fields.boolean("include_usage") or False
    fields.ignore("include_obfuscation")
    fields.finish()
    return include


def _mesh(value: object) -> tuple[Constraints, bool]:
    if value is None:
        return Constraints(), False
    fields = Fields(value, prefix="mesh.")
    name = fields.text("class", max_chars=40)
    data_class = Constraints().data_class if name is None else DataClass.parse(name, param="mesh.class")
    regions = fields.texts("regions", max_items=16, max_chars=300)
    exact = fields.boolean("exact") or False
    fields.finish()
    return Constraints(data_class, tuple(_region(r) for r in regions)), exact


def _region(path: str) -> Region:
    try:
        return Region(path)
    except BadInput as error:
        raise BadInput(error.message, param="mesh.regions", hint=error.hint) from None
