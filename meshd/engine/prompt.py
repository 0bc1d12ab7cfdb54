"""From messages to prompt text: the model's own chat template, or a plain one where it has none.

The plain template writes system text first, then ``User:`` and ``Assistant:`` lines, and ends with ``Assistant:``. A
base model would write the next user turn itself, so ``PLAIN_STOP`` is added to the stops of such an answer, on every
worker and on resume alike.

Templates come with model files and are code: they run in Jinja's immutable sandbox, with bounded output and time. No
clock is offered to them (``strftime_now``): a prompt must read the same on the worker that resumes it.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from meshd.core import limits
from meshd.core.chat import Message, Tool, ToolCall
from meshd.core.errors import BadInput
from meshd.engine.marking import Marks

PLAIN_STOP: Final = "\nUser:"
RENDER_TIMEOUT_S: Final = 2.0
"""Real templates take milliseconds."""

MAX_RENDERED_CHARS: Final = 2 * limits.MAX_PROMPT_BYTES
_PLAIN_NAMES: Final = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


def plain_chat(messages: Sequence[Message]) -> str:
    """The documented plain form, for models without a template."""
    system = [m.content for m in messages if m.role in ("system", "developer")]
    turns = [f"{_PLAIN_NAMES[m.role]}: {m.content}" for m in messages if m.role in _PLAIN_NAMES]
    head = "\n".join(system) + "\n\n" if system else ""
    return head + "\n".join([*turns, "Assistant:"])


Turns = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None


def _same(text: str) -> str:
    return text


def turns_of(messages: Sequence[Message], text: Callable[[str], str] = _same) -> Turns:
    """``messages`` as templates know them; ``text`` is applied to everything that people, or a model, wrote."""
    return [_turn(message, text) for message in messages]


def _turn(message: Message, text: Callable[[str], str]) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    turn: dict[str, Any] = {"role": role, "content": text(message.content)}
    if message.calls:
        turn["tool_calls"] = [_call(call, text) for call in message.calls]
    if message.call_id:
        turn["tool_call_id"] = text(message.call_id)
    if message.name:
        turn["name"] = text(message.name)
    return turn


def _call(call: ToolCall, text: Callable[[str], str]) -> dict[str, Any]:
    # Templates write arguments as JSON, or walk through them: both want the object and not its text.
    try:
        arguments = json.loads(call.arguments)
        given = _deep(arguments, text) if isinstance(arguments, dict) else text(call.arguments)
    except (ValueError, RecursionError):
        given = text(call.arguments)
    function = {"name": text(call.name), "arguments": given}
    return {"id": text(call.id), "type": "function", "function": function}


def tools_of(tools: Sequence[Tool], text: Callable[[str], str] = _same) -> Tools:
    """``tools`` as templates know them; None when there are none. Raises BadInput for parameters that are no JSON."""
    return [_tool(tool, text) for tool in tools] or None


def _tool(tool: Tool, text: Callable[[str], str]) -> dict[str, Any]:
    try:
        parameters = _deep(json.loads(tool.parameters), text)
    except (ValueError, RecursionError):
        raise BadInput(f"the parameters of {tool.name} are not a JSON schema", param="tools") from None
    function = {"name": text(tool.name), "description": text(tool.description), "parameters": parameters}
    return {"type": "function", "function": function}


def _deep(value: Any, text: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {text(key): _deep(inner, text) for key, inner in value.items()}
    return [_deep(inner, text) for inner in value] if isinstance(value, list) else value


class ChatTemplate:
    """A model's chat template, compiled once. Raises BadInput when it is not valid Jinja."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = self._to_json
        environment.globals["raise_exception"] = _refuse
        self._marks: Marks | None = None
        self._tokens = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, MemoryError, ValueError) as error:
            raise BadInput(f"the model's chat template is broken: {error}", param="messages") from None

    def render(self, turns: Turns, tools: Tools = None, marks: Marks | None = None) -> str:
        """The prompt text, at most MAX_RENDERED_CHARS long, in at most RENDER_TIMEOUT_S seconds. ``marks``: what
        stands in the turns and tools for some of their texts. Raises BadInput when the template refuses the messages
        or misbehaves. Main thread only (it arms a timer)."""
        given = {"messages": turns, "tools": tools, "add_generation_prompt": True, **self._tokens}
        self._marks = marks
        try:
            with _deadline(RENDER_TIMEOUT_S):
                return _bounded(self._template.generate(**given))
        except _TooSlow:
            raise BadInput("the model's chat template takes too long", param="messages") from None
        except (jinja2.TemplateError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
            raise BadInput(f"the model's chat template refuses: {error}", param="messages") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"the model's chat template fails: {error}", param="messages") from None
        finally:
            self._marks = None

    def _to_json(self, value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        """Templates may ask for ASCII only; marks, and models, want characters as they are."""
        known = {key: options[key] for key in ("indent", "separators", "sort_keys") if key in options}
        text = json.dumps(value, ensure_ascii=False, **known)
        return text if self._marks is None else self._marks.deeper(text)


class _TooSlow(BaseException):
    """Raised by the timer; not an Exception, so that no template construct swallows it."""


def _bounded(pieces: Iterator[str]) -> str:
    parts = []
    size = 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > MAX_RENDERED_CHARS:
            raise BadInput("the model's chat template makes too long a prompt", param="messages")
    return "".join(parts)


@contextmanager
def _deadline(seconds_s: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer"):  # Windows: the pool's hang watchdog is the bound there.
        yield
        return
    before = signal.signal(signal.SIGALRM, _raise_too_slow)
    signal.setitimer(signal.ITIMER_REAL, seconds_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _raise_too_slow(_signal: int, _frame: object) -> NoReturn:
    raise _TooSlow


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(str(message)[:500])
