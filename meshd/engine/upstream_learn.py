"""What a server can do, found out by asking it: a list of models, and a handful of answers of one token.

Whatever it does not show is not claimed. Above all: that it continues an assistant's last message, and that a schema
binds its answer; for servers that know neither often say nothing, and do as they like.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import trio

from meshd.core.ad import Ability
from meshd.core.errors import BadInput, EngineFailed, Overloaded, Unreachable
from meshd.core.upstream import Learnt, Upstream
from meshd.engine.config import UpstreamConfig
from meshd.engine.upstream_faults import Garbled, Refusal, is_busy, of_work, readable, refuses_key
from meshd.engine.upstream_http import Server
from meshd.engine.upstream_request import CHAT, CONTINUE_FIELDS, EMBEDDINGS, NEUTRAL, TEXT, response_format

MODELS: Final = "/models"
SHOWN_MODELS: Final = 5

_GREETING: Final = {"role": "user", "content": "Hi"}
_BEGUN: Final = {"role": "assistant", "content": "1"}
"""One digit: every vocabulary has it as one token, so that a prompt with it, and nothing else new, is one longer."""

_BOUND: Final = {
    "type": "object",
    "properties": {"a": {"type": "string", "enum": ["q7"]}},
    "required": ["a"],
    "additionalProperties": False,
}
_BOUND_ANSWER: Final = {"a": "q7"}
"""Nobody answers this by chance."""

_BOUND_TOKENS: Final = 80


async def find_model(server: Server, upstream: Upstream, timeout_s: float) -> int:
    """Ask whether the server is there and has the model; its context in tokens, 0 when it does not say.

    Raises BadInput (no such model or key; no such server), Unreachable, Overloaded.
    """
    try:
        listed = await server.get(MODELS, timeout_s)
    except Refusal as refusal:
        raise _unlisted(refusal) from None
    except Garbled as e:
        raise BadInput(f"no OpenAI-compatible server there: {e.message}", param="url") from None
    except EngineFailed as e:
        raise Unreachable(f"{upstream.url}: {e.message}", hint="is the server up, and the address right?") from None
    entries = [entry for entry in _list(listed) if isinstance(entry, dict)]
    for entry in entries:
        if upstream.model == entry.get("id") or upstream.model in _names(entry.get("aliases")):
            return _context_of(entry)
    names = ", ".join(readable(entry.get("id"))[:60] for entry in entries[:SHOWN_MODELS]) or "none"
    raise BadInput(f"the server has no model {upstream.model!r}", param="model", hint=f"it has: {names}")


def _unlisted(refusal: Refusal) -> BadInput | Unreachable | Overloaded:
    if refuses_key(refusal):
        hint = "give the server's key with --key-file, or check the one given"
        return BadInput(f"the server refuses the key: {refusal.text}", param="key", hint=hint)
    if is_busy(refusal):
        return Overloaded(f"the server is busy: {refusal.text}", retry_after_s=refusal.retry_after_s or 1.0)
    if refusal.status == 404:
        hint = "the address is what stands before /models, often .../v1"
        return BadInput("no OpenAI-compatible server there: it has no list of models", param="url", hint=hint)
    return Unreachable(f"the server answers HTTP {refusal.status}: {refusal.text}")


def _list(listed: object) -> list[Any]:
    data = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(data, list):
        raise BadInput("no OpenAI-compatible server there: its list of models is none", param="url")
    return data


def _names(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _context_of(entry: Mapping[str, Any]) -> int:
    """As vLLM, llama.cpp's server and others tell it."""
    meta = entry.get("meta")
    told = [entry.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None]
    for value in (*told, entry.get("context_length"), entry.get("context_window")):
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 2**30:
            return value
    return 0


async def learn(server: Server, upstream: Upstream, config: UpstreamConfig) -> Learnt:
    """All that the server shows of the model. Raises BadInput, Unreachable, Overloaded, with words for a person."""
    with trio.move_on_after(config.learn_timeout_s):
        context_tokens = await find_model(server, upstream, config.check_timeout_s)
        return await _Lesson(server, upstream.model, config.learn_timeout_s).learnt(context_tokens)
    raise Unreachable(f"the server gave no answer of one token within {config.learn_timeout_s:g} s")


class _Lesson:
    """The questions, and what they showed so far."""

    def __init__(self, server: Server, model: str, timeout_s: float) -> None:
        self._server = server
        self._model = model
        self._timeout_s = timeout_s
        self._limit_field = "max_tokens"
        self._why = ""

    async def learnt(self, context_tokens: int) -> Learnt:
        """Ask everything."""
        chat = await self._asked_with_limits({"messages": [_GREETING]}, CHAT)
        text = await self._asked(TEXT, {"prompt": "Hi"})
        embeds = await self._embeds()
        if chat is None and text is None and not embeds:
            raise BadInput(f"the model neither answers nor embeds: {self._why}", param="model")
        path, asked = (CHAT, {"messages": [_GREETING]}) if chat is not None else (TEXT, {"prompt": "Hi"})
        generates = chat is not None or text is not None
        extras = await self._extras(path, asked) if generates else ()
        continued = await self._continued(_prompt_tokens(chat)) if chat is not None else {}
        return Learnt(
            abilities=_abilities(generates, embeds, chat is None or continued is not None),
            context_tokens=context_tokens,
            chat=chat is not None,
            text=text is not None,
            continue_field=bool(continued),
            extras=extras,
            schema_field=await self._schema_field() if chat is not None else "",
            limit_field=self._limit_field,
            usage=generates and await self._tells_usage(path, asked),
        )

    async def _asked(self, path: str, body: Mapping[str, Any], limit_tokens: int = 1) -> dict[str, Any] | None:
        """The answer; None when the server refuses to give one. Raises Unreachable, Overloaded."""
        limit = {} if path == EMBEDDINGS else {self._limit_field: limit_tokens}
        try:
            answer = await self._server.post(path, {"model": self._model, **limit, **body}, self._timeout_s)
        except Refusal as refusal:
            if is_busy(refusal):
                raise of_work(refusal) from None
            self._why = refusal.text
            return None
        except Garbled as e:
            self._why = e.message
            return None
        except EngineFailed as e:
            raise Unreachable(e.message) from None
        return answer if isinstance(answer, dict) else None

    async def _asked_with_limits(self, body: Mapping[str, Any], path: str) -> dict[str, Any] | None:
        """Ask, and find out on the way what max_tokens is called here."""
        answer = await self._asked(path, body)
        if answer is None and "max_completion_tokens" in self._why:
            self._limit_field = "max_completion_tokens"
            answer = await self._asked(path, body)
        return answer

    async def _embeds(self) -> bool:
        answer = await self._asked(EMBEDDINGS, {"input": ["Hi"], "encoding_format": "float"})
        data = answer.get("data") if answer is not None else None
        first = data[0] if isinstance(data, list) and data else None
        vector = first.get("embedding") if isinstance(first, dict) else None
        return isinstance(vector, list) and bool(vector) and all(isinstance(x, int | float) for x in vector)

    async def _extras(self, path: str, asked: Mapping[str, Any]) -> tuple[str, ...]:
        """Which fields beyond OpenAI's the server does not refuse."""
        if await self._asked(path, {**asked, **NEUTRAL}) is not None:
            return tuple(NEUTRAL)
        return tuple([f for f, v in NEUTRAL.items() if await self._asked(path, {**asked, f: v}) is not None])

    async def _continued(self, alone: int | None) -> dict[str, Any] | None:
        """What a request needs so that the assistant's last message is continued; None: it never is.

        Shown by the length of the prompt: one token longer with that message of one token. If the message were
        closed and a new one opened, it would be longer by more.
        """
        if alone is None:
            return None
        for fields in ({}, CONTINUE_FIELDS):
            answer = await self._asked(CHAT, {"messages": [_GREETING, _BEGUN], **fields})
            if _prompt_tokens(answer) == alone + 1:
                return dict(fields)
        return None

    async def _schema_field(self) -> str:
        for field in ("json_schema", "json_object"):
            body = {"messages": [_GREETING], "temperature": 0, "response_format": response_format(field, _BOUND)}
            if _json_in(await self._asked(CHAT, body, _BOUND_TOKENS)) == _BOUND_ANSWER:
                return field
        return ""

    async def _tells_usage(self, path: str, asked: Mapping[str, Any]) -> bool:
        """Whether a stream can end with token counts. Not told and refused are the same to us."""
        body = {"model": self._model, self._limit_field: 1, **asked}
        try:
            async with self._server.stream(path, {**body, "stream": True, "stream_options": {"include_usage": True}}):
                return True
        except (Refusal, EngineFailed):
            return False


def _abilities(generates: bool, embeds: bool, resumes: bool) -> tuple[Ability, ...]:
    shown = {Ability.GENERATE: generates, Ability.EMBED: embeds, Ability.RESUME: generates and resumes}
    return tuple(ability for ability, there in shown.items() if there)


def _prompt_tokens(answer: Mapping[str, Any] | None) -> int | None:
    usage = answer.get("usage") if answer is not None else None
    value = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None


def _json_in(answer: Mapping[str, Any] | None) -> object:
    """The JSON that the answer's text is; None when it is none."""
    try:
        return json.loads(answer["choices"][0]["message"]["content"]) if answer is not None else None
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        return None
