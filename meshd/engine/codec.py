"""A generation as a map for the engine process, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from meshd.core.generation import Generation, Message, Prompt, Sampling


def request_map(request: Generation) -> dict[str, Any]:
    """``request`` in msgpack's types."""
    return {
        "text": request.prompt.text,
        "messages": [[m.role, m.content] for m in request.prompt.messages],
        "sampling": asdict(request.sampling),
        "max_tokens": request.max_tokens,
        "stop": list(request.stop),
        "exact": request.exact,
    }


def request_from(fields: dict[str, Any]) -> Generation:
    """The generation that ``request_map`` wrote."""
    messages = tuple(Message(role, content) for role, content in fields["messages"])
    return Generation(
        prompt=Prompt(fields["text"], messages),
        sampling=Sampling(**fields["sampling"]),
        max_tokens=fields["max_tokens"],
        stop=tuple(fields["stop"]),
        exact=fields["exact"],
    )
