"""A chat's turns, and the tools that a model may ask the app to run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from meshd.core import limits
from meshd.core.errors import BadInput

ROLES = ("system", "developer", "user", "assistant", "tool")

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def size_bytes(text: str, param: str) -> int:
    """UTF-8 size of ``text``; BadInput about ``param`` when UTF-8 cannot hold it."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise BadInput("the text holds lone surrogates", param=param) from None


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise BadInput("a function's name has 1 to 64 of a-z, A-Z, 0-9, _, . and -", param="tools")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asked for: ``arguments`` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.id) > 200:
            raise BadInput("a tool call's id is too long", param="messages")


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn; ``role`` is a template's word such as system, user, assistant. ``calls``: what an assistant's
    turn asked for. ``call_id`` and ``name``: which call the turn of a tool answers."""

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise BadInput(f"unknown role {self.role[:20]!r}", param="messages")
        if self.calls and self.role != "assistant":
            raise BadInput("only an assistant's message holds tool calls", param="messages")
        if len(self.calls) > limits.MAX_TOOLS or len(self.call_id) > 200 or len(self.name) > 200:
            raise BadInput("too many tool calls in a message, or too long names", param="messages")

    def size_bytes(self) -> int:
        """UTF-8 size of all its text."""
        texts = [self.content, self.call_id, self.name, *(t for c in self.calls for t in (c.id, c.name, c.arguments))]
        return sum(size_bytes(text, "messages") for text in texts)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. ``parameters``: the JSON text of its arguments' schema."""

    name: str
    description: str = ""
    parameters: str = "{}"

    def __post_init__(self) -> None:
        _check_name(self.name)
        if size_bytes(self.description + self.parameters, "tools") > limits.MAX_SCHEMA_BYTES:
            raise BadInput(f"a tool has at most {limits.MAX_SCHEMA_BYTES} bytes", param="tools")


class ToolMode(StrEnum):
    """Whether the model may call tools (as it likes), must, or must not."""

    AUTO = "auto"
    REQUIRED = "required"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """``name``: the one tool that must be called; empty for any. ``parallel``: several calls in one answer."""

    mode: ToolMode = ToolMode.AUTO
    name: str = ""
    parallel: bool = True

    @property
    def calls(self) -> bool:
        """Whether the model may call anything."""
        return self.mode is not ToolMode.NONE

    def check(self, names: set[str]) -> None:
        """Raise BadInput when it cannot be met by tools of those ``names``."""
        if self.name and (self.mode is not ToolMode.REQUIRED or self.name not in names):
            raise BadInput(f"tool_choice names {self.name[:64]!r}, which is not among the tools", param="tool_choice")
        if self.mode is ToolMode.REQUIRED and not names:
            raise BadInput("tool_choice requires a call, but there are no tools", param="tool_choice")
