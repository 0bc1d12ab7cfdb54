"""How models write calls of tools in their text. A model's chat template shows which way it was taught.

The worker finds the syntax in the template and constrains the model to it; the submitter reads the calls out of the
text, whoever wrote it. Both know them by the same short name, which travels with the answer's opening.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """A call is ``opener``, JSON, ``closer``. The JSON is an object with ``name`` and ``arguments_key`` (an object);
    ``listed``: it is an array of such objects instead, and the answer holds at most one. An empty ``opener``: the call
    is the whole answer, which then begins with ``{``. ``sign``: what a template that teaches this syntax contains."""

    name: str
    opener: str
    closer: str
    arguments_key: str
    sign: str
    listed: bool = False


HERMES: Final = ToolSyntax("hermes", "<tool_call>", "</tool_call>", "arguments", sign="<tool_call>")
"""Hermes, Qwen 2.5 and 3, and many others."""

MISTRAL: Final = ToolSyntax("mistral", "[TOOL_CALLS]", "", "arguments", sign="[TOOL_CALLS]", listed=True)
"""Mistral and Mixtral of the third template version on; the opener is a control token."""

LLAMA3: Final = ToolSyntax("llama3", "", "", "parameters", sign='"parameters":')
"""Llama 3.1 and later, as their templates ask for custom functions."""

SYNTAXES: Final = (HERMES, MISTRAL, LLAMA3)


def syntax_named(name: str) -> ToolSyntax | None:
    """The syntax of that name; None when there is none, or the answer has none (an empty name)."""
    return next((syntax for syntax in SYNTAXES if syntax.name == name), None)


def syntax_of(template: str) -> ToolSyntax | None:
    """The syntax that a chat template (Jinja source) teaches; None when it knows nothing of tools."""
    if "tools" not in template:
        return None
    return next((syntax for syntax in SYNTAXES if syntax.sign in template), None)
