"""A piece of work as a map for the engine process, and back. Both ends are of one build: no versions here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from meshd.core.chat import Message, Tool, ToolCall, ToolChoice, ToolMode
from meshd.core.generation import Bias, Format, FormatKind, Generation, Prompt, Sampling
from meshd.core.job import Embedding, Tokenization, Work


def work_map(work: Work) -> dict[str, Any]:
    """``work`` in msgpack's types."""
    return {"kind": type(work).__name__, **asdict(work)}


def work_from(fields: dict[str, Any]) -> Work:
    """The work that ``work_map`` wrote."""
    match fields.pop("kind"):
        case "Embedding":
            return Embedding(tuple(_prompt(p) for p in fields["inputs"]))
        case "Tokenization":
            return Tokenization(_prompt(fields["prompt"]), fields["special"])
        case _:
            return _generation(fields)


def _generation(fields: dict[str, Any]) -> Generation:
    sampling, form, choice = fields["sampling"], fields["format"], fields["tool_choice"]
    return Generation(
        prompt=_prompt(fields["prompt"]),
        sampling=Sampling(**{**sampling, "biases": tuple(Bias(**bias) for bias in sampling["biases"])}),
        max_tokens=fields["max_tokens"],
        stop=tuple(fields["stop"]),
        exact=fields["exact"],
        top_logprobs=fields["top_logprobs"],
        format=Format(FormatKind(form["kind"]), form["schema"]),
        tools=tuple(Tool(**tool) for tool in fields["tools"]),
        tool_choice=ToolChoice(ToolMode(choice["mode"]), choice["name"], choice["parallel"]),
    )


def _prompt(fields: dict[str, Any]) -> Prompt:
    messages = tuple(
        Message(**{**message, "calls": tuple(ToolCall(**call) for call in message["calls"])})
        for message in fields["messages"]
    )
    return Prompt(fields["text"], messages, tuple(fields["tokens"]))
