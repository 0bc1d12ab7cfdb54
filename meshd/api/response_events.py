"""The bytes of /v1/responses: one message of text, as one object or as its events. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from meshd.api.asked import TextRequest
from meshd.api.chunks import MARK, Account, quoted
from meshd.core.errors import MeshError
from meshd.core.generation import FinishReason, Opening, Usage
from meshd.core.ids import JobId
from meshd.node.views import ItemsDelta, JobDone, TextDelta


def _usage(usage: Usage) -> dict[str, object]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class _Response:
    """The response object, in each state that it goes through."""

    def __init__(self, request: TextRequest, job: JobId, created_s: int) -> None:
        bare = job.removeprefix("job_")
        self.item_id = f"msg_{bare}"
        self._told: dict[str, object] = {
            "id": f"resp_{bare}",
            "object": "response",
            "created_at": created_s,
            "model": request.model,
            "background": False,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
            **request.told,
        }

    def item(self, status: str, text: str | None) -> dict[str, object]:
        """The message; ``text`` None before its part was added."""
        content = [] if text is None else [_part(text)]
        return {"id": self.item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def state(self, status: str, output: list[dict[str, object]], **more: object) -> dict[str, object]:
        """The object with that status."""
        base: dict[str, object] = {"status": status, "error": None, "incomplete_details": None, "usage": None}
        return {**self._told, **base, "output": output, **more}

    def finished(self, text: str, done: JobDone, account: Account) -> dict[str, object]:
        """The object once the answer has ended by itself, or at a limit."""
        more: dict[str, object] = {"usage": _usage(account.usage), "mesh": account.mesh}
        if done.finish is FinishReason.LENGTH:
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        status = _status(done)
        return self.state(status, [self.item(status, text)], **more)


def _status(done: JobDone) -> str:
    return "incomplete" if done.finish is FinishReason.LENGTH else "completed"


class WholeResponse:
    """A response in one piece. Implements `chunks.Whole`."""

    large = False

    def __init__(self, request: TextRequest, jobs: Sequence[JobId], created_s: int) -> None:
        self._account = Account(jobs, 1)
        self._response = _Response(request, jobs[0], created_s)
        self._texts: list[str] = []
        self._body: dict[str, object] = {}

    def opened(self, choice: int, opening: Opening) -> None:
        """The engine has the prompt."""

    def take(self, choice: int, delta: TextDelta | ItemsDelta) -> None:
        """New text."""
        if isinstance(delta, TextDelta):
            self._texts.append(delta.text)

    def done(self, choice: int, done: JobDone, attempts: int) -> None:
        """The answer is complete."""
        self._account.done(choice, done, attempts)
        self._body = self._response.finished("".join(self._texts), done, self._account)

    def body(self) -> dict[str, object]:
        """The response object."""
        return self._body


class StreamedResponse:
    """A response as named events, each with its number. Implements `chunks.Streamed`."""

    def __init__(self, request: TextRequest, jobs: Sequence[JobId], created_s: int) -> None:
        self._account = Account(jobs, 1)
        self._response = _Response(request, jobs[0], created_s)
        self._texts: list[str] = []
        self._number = 0
        self._begun = False
        self._place: dict[str, object] = {"item_id": self._response.item_id, "output_index": 0, "content_index": 0}
        delta = {"type": "response.output_text.delta", **self._place, "logprobs": [], "delta": MARK}
        before, after = json.dumps(delta).split(json.dumps(MARK))
        self._before = f"event: response.output_text.delta\ndata: {before}"
        self._after = after.removesuffix("}")

    def _event(self, type: str, **more: object) -> bytes:
        body = {"type": type, **more, "sequence_number": self._next()}
        return f"event: {type}\ndata: {json.dumps(body)}\n\n".encode("ascii")

    def _next(self) -> int:
        number, self._number = self._number, self._number + 1
        return number

    def opened(self, choice: int, opening: Opening) -> bytes:
        """Nothing yet: an early failure still has its own status."""
        return b""

    def _begin(self) -> bytes:
        """The events before the first text."""
        self._begun = True
        state = self._response.state("in_progress", [])
        return (
            self._event("response.created", response=state)
            + self._event("response.in_progress", response=state)
            + self._event("response.output_item.added", output_index=0, item=self._response.item("in_progress", None))
            + self._event("response.content_part.added", **self._place, part=_part(""))
        )

    def text(self, choice: int, delta: TextDelta) -> bytes:
        """One delta."""
        begin = b"" if self._begun else self._begin()
        self._texts.append(delta.text)
        end = f', "sequence_number": {self._next()}}}\n\n'
        return begin + (self._before + quoted(delta.text) + self._after + end).encode("ascii")

    def done(self, choice: int, done: JobDone, attempts: int) -> bytes:
        """The ends of text, part and message, and the last state."""
        begin = b"" if self._begun else self._begin()
        text = "".join(self._texts)
        self._account.done(choice, done, attempts)
        status = _status(done)
        last = self._response.finished(text, done, self._account)
        return (
            begin
            + self._event("response.output_text.done", **self._place, text=text, logprobs=[])
            + self._event("response.content_part.done", **self._place, part=_part(text))
            + self._event("response.output_item.done", output_index=0, item=self._response.item(status, text))
            + self._event(f"response.{status}", response=last)
        )

    def end(self) -> bytes:
        """The last state was the end."""
        return b""

    def failed(self, error: MeshError) -> bytes:
        """The last state of a response that cannot be completed: what came of it stays in it."""
        begin = b"" if self._begun else self._begin()
        told = {
            "code": "server_error",  # the only one of that API's codes that fits; ours is beside it
            "message": error.message,
            "mesh": {"code": error.code, "hint": error.hint},
        }
        output = [self._response.item("incomplete", "".join(self._texts))]
        return begin + self._event("response.failed", response=self._response.state("failed", output, error=told))
