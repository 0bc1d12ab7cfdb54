"""The bytes of a text completion, streamed or whole. Pure. The choices of prompt p are p * n to p * n + n - 1."""

from __future__ import annotations

from collections.abc import Sequence

from meshd.api.asked import TextRequest
from meshd.api.chunks import DONE, MARK, Account, error_event, event_bytes, quoted, template_of, usage_object
from meshd.api.logprobs import CompletionLogprobs, many
from meshd.core.errors import MeshError
from meshd.core.generation import Opening, Token
from meshd.core.ids import JobId
from meshd.node.views import ItemsDelta, JobDone, TextDelta


def _head(jobs: Sequence[JobId], created_s: int, model: str) -> dict[str, object]:
    id = "cmpl-" + jobs[0].removeprefix("job_")
    return {"id": id, "object": "text_completion", "created": created_s, "model": model}


def _echoed(request: TextRequest, choice: int) -> str:
    """What is said before the answer: the prompt, when the app wants it repeated."""
    return request.generations[choice // request.n].prompt.text or "" if request.echo else ""


def _choice(index: int, text: str, logprobs: object, finish: str | None) -> dict[str, object]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


class StreamedCompletion:
    """A text completion as server-sent events. Implements `chunks.Streamed`."""

    def __init__(self, request: TextRequest, jobs: Sequence[JobId], created_s: int) -> None:
        self._request = request
        self._account = Account(jobs, request.n)
        self._head = _head(jobs, created_s, request.model)
        top = request.generations[0].top_logprobs or 0
        self._logprobs = [CompletionLogprobs(top) for _ in jobs]
        self._templates = [template_of(self._chunk([_choice(i, MARK, None, None)])) for i in range(len(jobs))]
        self._to_echo = {i: text for i in range(len(jobs)) if (text := _echoed(request, i))}

    def _chunk(self, choices: list[dict[str, object]], **more: object) -> dict[str, object]:
        usage: dict[str, object] = {"usage": None} if self._request.include_usage else {}
        return {**self._head, "choices": choices, **usage, **more}

    def opened(self, choice: int, opening: Opening) -> bytes:
        """Nothing yet: an early failure still has its own status."""
        return b""

    def text(self, choice: int, delta: TextDelta) -> bytes:
        """One chunk of new text; the prompt before the first, when it is to be repeated."""
        if delta.scored:
            logprobs = self._logprobs[choice].of(delta.scored)
            return event_bytes(self._chunk([_choice(choice, delta.text, logprobs, None)]))
        before, after = self._templates[choice]
        echoed = self._echo(choice) if self._to_echo else b""
        return echoed + (before + quoted(delta.text) + after).encode("ascii")

    def _echo(self, choice: int) -> bytes:
        text = self._to_echo.pop(choice, "")
        before, after = self._templates[choice]
        return (before + quoted(text) + after).encode("ascii") if text else b""

    def done(self, choice: int, done: JobDone, attempts: int) -> bytes:
        """The chunk with the finish reason."""
        mesh = self._account.done(choice, done, attempts)
        ending = event_bytes(self._chunk([_choice(choice, "", None, str(done.finish))], mesh=mesh))
        return self._echo(choice) + ending

    def end(self) -> bytes:
        """The usage when asked for, and [DONE]."""
        if not self._request.include_usage:
            return DONE
        return event_bytes(self._chunk([], usage=usage_object(self._account.usage), mesh=self._account.mesh)) + DONE

    def failed(self, error: MeshError) -> bytes:
        """The error object as the last event."""
        return error_event(error)


class WholeCompletion:
    """A text completion in one piece. Implements `chunks.Whole`."""

    def __init__(self, request: TextRequest, jobs: Sequence[JobId], created_s: int) -> None:
        self._request = request
        self._account = Account(jobs, request.n)
        self._head = _head(jobs, created_s, request.model)
        self._texts: list[list[str]] = [[_echoed(request, i)] for i in range(len(jobs))]
        self._scored: list[list[Token]] = [[] for _ in jobs]
        self._finishes = [""] * len(jobs)

    @property
    def large(self) -> bool:
        """Whether there are many probabilities to write."""
        return any(map(many, self._scored))

    def opened(self, choice: int, opening: Opening) -> None:
        """The engine has the prompt."""

    def take(self, choice: int, delta: TextDelta | ItemsDelta) -> None:
        """New text."""
        if isinstance(delta, TextDelta):
            self._texts[choice].append(delta.text)
            self._scored[choice] += delta.scored

    def done(self, choice: int, done: JobDone, attempts: int) -> None:
        """One answer is complete."""
        self._finishes[choice] = str(done.finish)
        self._account.done(choice, done, attempts)

    def body(self) -> dict[str, object]:
        """The text completion object."""
        choices = [
            _choice(i, "".join(texts), self._logprobs(i), self._finishes[i]) for i, texts in enumerate(self._texts)
        ]
        usage = usage_object(self._account.usage)
        return {**self._head, "choices": choices, "usage": usage, "mesh": self._account.mesh}

    def _logprobs(self, choice: int) -> object:
        top = self._request.generations[0].top_logprobs
        return None if top is None else CompletionLogprobs(top).of(self._scored[choice])
