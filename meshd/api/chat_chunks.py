"""The bytes of a chat completion, streamed or whole, with the calls of tools that are in its text. Pure.

One instance a request: what stays the same in every chunk is serialised once.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshd.api.asked import TextRequest
from meshd.api.chunks import DONE, MARK, Account, error_event, event_bytes, quoted, template_of, usage_object
from meshd.api.logprobs import chat_logprobs, many
from meshd.core.errors import MeshError
from meshd.core.generation import FinishReason, Opening, Token
from meshd.core.ids import JobId
from meshd.core.toolcalls import CallArguments, CallBegun, CallBroken, CallEvent, CallReader, Said
from meshd.core.toolsyntax import syntax_named
from meshd.node.views import ItemsDelta, JobDone, TextDelta


def _head(jobs: Sequence[JobId], object: str, created_s: int, model: str) -> dict[str, object]:
    id = "chatcmpl-" + jobs[0].removeprefix("job_")
    return {"id": id, "object": object, "created": created_s, "model": model}


def _call_id(job: JobId, index: int) -> str:
    return f"call_{job.removeprefix('job_')}_{index}"


def _reader(request: TextRequest, opening: Opening) -> CallReader | None:
    """Reads the calls, when tools were offered and the model writes calls in a way that we know."""
    generation = request.generations[0]
    syntax = syntax_named(opening.tool_syntax)
    if syntax is None or not generation.tools or not generation.tool_choice.calls:
        return None
    return CallReader(syntax, [tool.name for tool in generation.tools])


def _finish(done: JobDone, reader: CallReader | None) -> str:
    called = reader is not None and reader.whole and not reader.cut
    return "tool_calls" if called else str(done.finish)


class _StreamedChoice:
    """One answer of a stream."""

    def __init__(self, index: int, job: JobId, template: tuple[str, str]) -> None:
        self.index, self.job = index, job
        self.before, self.after = template
        self.opened = False
        self.reader: CallReader | None = None

    def choice(self, delta: dict[str, object], finish: str | None = None) -> dict[str, object]:
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": finish}

    def delta(self, event: CallEvent) -> dict[str, object] | None:
        """What a client is told of ``event``."""
        match event:
            case Said(text):
                return {"content": text}
            case CallBegun(index, name):
                call = {"index": index, "id": _call_id(self.job, index), "type": "function"}
                return {"tool_calls": [{**call, "function": {"name": name, "arguments": ""}}]}
            case CallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        return None


class StreamedChat:
    """A chat completion as server-sent events. Implements `chunks.Streamed`."""

    def __init__(self, request: TextRequest, jobs: Sequence[JobId], created_s: int) -> None:
        self._request = request
        self._account = Account(jobs, request.n)
        self._head = _head(jobs, "chat.completion.chunk", created_s, request.model)
        self._choices = [_StreamedChoice(i, job, self._template(i)) for i, job in enumerate(jobs)]

    def _template(self, index: int) -> tuple[str, str]:
        choice = {"index": index, "delta": {"content": MARK}, "logprobs": None, "finish_reason": None}
        return template_of(self._chunk([choice]))

    def _chunk(self, choices: list[dict[str, object]], **more: object) -> dict[str, object]:
        # With include_usage OpenAI's every chunk but the last carries a null usage.
        usage: dict[str, object] = {"usage": None} if self._request.include_usage else {}
        return {**self._head, "choices": choices, **usage, **more}

    def opened(self, choice: int, opening: Opening) -> bytes:
        """Nothing yet: an early failure still has its own status."""
        self._choices[choice].reader = _reader(self._request, opening)
        return b""

    def text(self, choice: int, delta: TextDelta) -> bytes:
        """The chunk, or chunks, of new text."""
        c = self._choices[choice]
        opening = b"" if c.opened else self._opening(c)
        if c.reader is not None:
            return opening + self._read(c, c.reader.feed(delta.text), delta.scored)
        if delta.scored:
            return opening + self._scored(c, delta.text, delta.scored)
        return opening + (c.before + quoted(delta.text) + c.after).encode("ascii")

    def _opening(self, c: _StreamedChoice) -> bytes:
        """The chunk that names the role, once a choice."""
        c.opened = True
        return event_bytes(self._chunk([c.choice({"role": "assistant", "content": ""})]))

    def _scored(self, c: _StreamedChoice, text: str, scored: tuple[Token, ...]) -> bytes:
        return event_bytes(self._chunk([{**c.choice({"content": text}), "logprobs": chat_logprobs(scored)}]))

    def _read(self, c: _StreamedChoice, events: list[CallEvent], scored: tuple[Token, ...]) -> bytes:
        """The events as chunks. Probabilities come in one chunk before them, since text may be held back."""
        data = self._scored(c, "", scored) if scored else b""
        deltas = [delta for event in events if (delta := c.delta(event)) is not None]
        return data + b"".join([event_bytes(self._chunk([c.choice(delta)])) for delta in deltas])

    def done(self, choice: int, done: JobDone, attempts: int) -> bytes:
        """The chunk with the finish reason, after whatever was held back."""
        c = self._choices[choice]
        data = b"" if c.opened else self._opening(c)
        if c.reader is not None:
            data += self._read(c, c.reader.finish(cut=done.finish is FinishReason.LENGTH), ())
        mesh = self._account.done(choice, done, attempts)
        return data + event_bytes(self._chunk([c.choice({}, _finish(done, c.reader))], mesh=mesh))

    def end(self) -> bytes:
        """The usage when asked for, and [DONE]."""
        if not self._request.include_usage:
            return DONE
        return event_bytes(self._chunk([], usage=usage_object(self._account.usage), mesh=self._account.mesh)) + DONE

    def failed(self, error: MeshError) -> bytes:
        """The error object as the last event."""
        return error_event(error)


class _WholeChoice:
    """One answer as it is collected."""

    def __init__(self, job: JobId) -> None:
        self.job = job
        self.reader: CallReader | None = None
        self.texts: list[str] = []
        self.calls: dict[int, tuple[str, list[str]]] = {}
        self.scored: list[Token] = []
        self.finish = ""

    def read(self, events: list[CallEvent]) -> None:
        for event in events:
            match event:
                case Said(text):
                    self.texts.append(text)
                case CallBegun(index, name):
                    self.calls[index] = name, []
                case CallArguments(index, text):
                    self.calls[index][1].append(text)
                case CallBroken(index):
                    del self.calls[index]

    def message(self) -> dict[str, object]:
        text = "".join(self.texts)
        message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
        if self.calls:
            message["content"] = text or None
            message["tool_calls"] = [
                {
                    "id": _call_id(self.job, index),
                    "type": "function",
                    "function": {"name": name, "arguments": "".join(pieces)},
                }
                for index, (name, pieces) in self.calls.items()
            ]
        return message


class WholeChat:
    """A chat completion in one piece. Implements `chunks.Whole`."""

    def __init__(self, request: TextRequest, jobs: Sequence[JobId], created_s: int) -> None:
        self._request = request
        self._account = Account(jobs, request.n)
        self._head = _head(jobs, "chat.completion", created_s, request.model)
        self._choices = [_WholeChoice(job) for job in jobs]

    @property
    def large(self) -> bool:
        """Whether there are many probabilities to write."""
        return any(many(c.scored) for c in self._choices)

    def opened(self, choice: int, opening: Opening) -> None:
        """The engine has the prompt."""
        self._choices[choice].reader = _reader(self._request, opening)

    def take(self, choice: int, delta: TextDelta | ItemsDelta) -> None:
        """New text."""
        if isinstance(delta, ItemsDelta):
            return
        c = self._choices[choice]
        c.scored += delta.scored
        if c.reader is None:
            c.texts.append(delta.text)
        else:
            c.read(c.reader.feed(delta.text))

    def done(self, choice: int, done: JobDone, attempts: int) -> None:
        """One answer is complete."""
        c = self._choices[choice]
        if c.reader is not None:
            c.read(c.reader.finish(cut=done.finish is FinishReason.LENGTH))
        c.finish = _finish(done, c.reader)
        self._account.done(choice, done, attempts)

    def body(self) -> dict[str, object]:
        """The chat completion object."""
        scored = self._request.generations[0].top_logprobs is not None
        choices = [
            {
                "index": i,
                "message": c.message(),
                "logprobs": chat_logprobs(c.scored) if scored else None,
                "finish_reason": c.finish,
            }
            for i, c in enumerate(self._choices)
        ]
        usage = usage_object(self._account.usage)
        return {**self._head, "choices": choices, "usage": usage, "mesh": self._account.mesh}
