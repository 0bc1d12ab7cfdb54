"""The bytes of an answer, streamed (SSE) or whole, as OpenAI's clients expect them. Pure.

One instance a request: what stays the same in every chunk is serialised once. All JSON is ASCII, because some
clients split events at U+2028 and its like.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii as _quoted
from urllib.parse import quote

from meshd.api.errors import mesh_error_object
from meshd.api.parse import ChatRequest
from meshd.core.errors import MeshError
from meshd.core.generation import Usage
from meshd.core.ids import JobId
from meshd.node.views import JobDone, Loading, Rerouted

KEEPALIVE = b": mesh waiting\n\n"
DONE = b"data: [DONE]\n\n"
_MARK = '"\x00"'  # cannot occur in serialised JSON, so that it splits a template safely


def reroute_comment(event: Rerouted) -> bytes:
    """A line that SSE clients skip and people may read; values are percent-encoded, so it stays one line."""
    fields = {
        "attempt": str(event.attempt),
        "worker": event.worker_name or event.worker,
        "at_token": str(event.at_token),
        "reason": event.reason,
    }
    text = " ".join(f"{name}={quote(value)}" for name, value in fields.items())
    return f": mesh rerouted {text}\n\n".encode()


def loading_comment(event: Loading) -> bytes:
    """A line that SSE clients skip: the model is being loaded, and so much of it is there."""
    return f": mesh loading worker={quote(event.worker_name)} percent={event.fraction * 100:.0f}\n\n".encode()


def error_event(error: MeshError) -> bytes:
    """The event that ends a stream which cannot be completed; nothing may follow it."""
    return b"data: " + json.dumps(mesh_error_object(error)).encode() + b"\n\n"


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


class Chunks:
    """Serialises one answer. ``created_s``: wall clock, whole seconds."""

    def __init__(self, request: ChatRequest, job: JobId, created_s: int) -> None:
        self._chat = request.chat
        self._job = job
        self._include_usage = request.include_usage
        self._head: dict[str, object] = {
            "id": ("chatcmpl-" if request.chat else "cmpl-") + job.removeprefix("job_"),
            "object": self._object(stream=True),
            "created": created_s,
            "model": request.model,
        }
        template = json.dumps(self._chunk([self._choice(_MARK, None)]))
        before, after = template.split(json.dumps(_MARK))
        self._before, self._after = f"data: {before}", f"{after}\n\n"

    def _object(self, *, stream: bool) -> str:
        if not self._chat:
            return "text_completion"
        return "chat.completion.chunk" if stream else "chat.completion"

    def _choice(self, text: str | None, finish: str | None) -> dict[str, object]:
        said: dict[str, object] = {"text": text or ""}
        if self._chat:
            said = {"delta": {} if text is None else {"content": text}}
        return {"index": 0, **said, "logprobs": None, "finish_reason": finish}

    def _chunk(self, choices: list[dict[str, object]], **more: object) -> dict[str, object]:
        # With include_usage OpenAI's every chunk but the last carries a null usage.
        usage: dict[str, object] = {"usage": None} if self._include_usage else {}
        return {**self._head, "choices": choices, **usage, **more}

    def opening(self) -> bytes:
        """The chunk that names the role; completions have none."""
        if not self._chat:
            return b""
        choice = self._choice("", None)
        choice["delta"] = {"role": "assistant", "content": ""}
        return self._event(self._chunk([choice]))

    def text(self, text: str) -> bytes:
        """One chunk of new text."""
        return (self._before + _quoted(text) + self._after).encode("ascii")

    def closing(self, done: JobDone, attempts: int) -> bytes:
        """The chunk with the finish reason, the usage when asked for, and [DONE]."""
        mesh = self._mesh(done, attempts)
        end = self._event(self._chunk([self._choice(None, str(done.finish))], mesh=mesh))
        if self._include_usage:
            end += self._event(self._chunk([], usage=_usage(done.usage), mesh=mesh))
        return end + DONE

    def whole(self, text: str, done: JobDone, attempts: int) -> dict[str, object]:
        """The body of an answer that is not streamed."""
        said: dict[str, object] = {"text": text}
        if self._chat:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": str(done.finish)}
        return {
            **self._head,
            "object": self._object(stream=False),
            "choices": [choice],
            "usage": _usage(done.usage),
            "mesh": self._mesh(done, attempts),
        }

    def _mesh(self, done: JobDone, attempts: int) -> dict[str, object]:
        return {"job": self._job, "receipt": done.receipt_id, "attempts": attempts}

    @staticmethod
    def _event(chunk: dict[str, object]) -> bytes:
        return b"data: " + json.dumps(chunk).encode("ascii") + b"\n\n"
