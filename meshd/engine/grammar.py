"""What a constrained answer must look like, as texts of llguidance's grammar language. Pure: nothing is compiled here.

White space inside JSON is one blank, or a line break with a bounded indent: a model that has nothing to say must come
to an end, not to a hundred thousand blanks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from meshd.core import limits
from meshd.core.chat import Tool, ToolChoice
from meshd.core.errors import BadInput
from meshd.core.generation import Format, FormatKind
from meshd.core.toolsyntax import ToolSyntax

_BLANKS: Final = {"whitespace_flexible": True, "whitespace_pattern": r"[ ]|\n[ ]{0,32}"}
_FORMAT_OPTIONS: Final = _BLANKS
_TOOL_OPTIONS: Final = {**_BLANKS, "lenient": True, "coerce_one_of": True}
"""Schemas of tools are written for people and other programs: what a grammar cannot express there (an unknown keyword)
is left to the app, as with any model. An answer's format is a promise: there it is an error."""

MAX_MULTIPLE: Final = 20_000
"""A grammar for multiples of n has n states: beyond, compiling takes seconds, then minutes."""

_MAX_TOOLS_BYTES: Final = 4 * limits.MAX_SCHEMA_BYTES
"""All tools' schemas together: they become one grammar."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools a request offers and how this model writes calls. ``opener`` and ``closer``: the ids of the control
    tokens that write them; None where they are plain text."""

    syntax: ToolSyntax
    tools: tuple[Tool, ...]
    choice: ToolChoice
    opener: int | None = None
    closer: int | None = None


def of_format(form: Format) -> str | None:
    """The grammar of a whole answer; None when anything goes. Raises BadInput for what is no schema."""
    if form.kind is FormatKind.TEXT:
        return None
    schema = {"type": "object"} if form.kind is FormatKind.JSON_OBJECT else _schema(form.schema, "response_format")
    return f"start: json\njson: {_json(schema, _FORMAT_OPTIONS)}\n"


def of_calls(offer: Offer) -> str:
    """The grammar of an answer that consists of calls, opener included."""
    syntax = offer.syntax
    if syntax.listed or not syntax.opener:
        return _lines(offer, f"{_mark(syntax.opener, offer.opener)} {_after(offer)}")
    more = f" (WS? call){{0,{limits.MAX_TOOLS - 1}}}" if offer.choice.parallel else ""
    call = f"call: {_mark(syntax.opener, offer.opener)} {_after(offer)}\n"
    return _lines(offer, f"call{more}") + call


def of_call(offer: Offer) -> str:
    """The grammar of what follows an opener: one call up to its closer, or the whole list of calls."""
    return _lines(offer, _after(offer))


def _after(offer: Offer) -> str:
    syntax = offer.syntax
    if syntax.listed:
        more = f' ("," WS? body){{0,{limits.MAX_TOOLS - 1}}}' if offer.choice.parallel else ""
        return f'WS? "[" body{more} "]"'
    return f"WS? body WS? {_mark(syntax.closer, offer.closer)}" if syntax.opener else "body"


def _mark(text: str, token: int | None) -> str:
    """A control token is named by its id: as text it cannot be written."""
    return f"<[{token}]>" if token is not None else json.dumps(text) if text else ""


def _lines(offer: Offer, start: str) -> str:
    tools = [tool for tool in offer.tools if offer.choice.name in ("", tool.name)]
    if sum(len(tool.parameters.encode()) for tool in tools) > _MAX_TOOLS_BYTES:
        raise BadInput(f"the tools' schemas have more than {_MAX_TOOLS_BYTES} bytes", param="tools")
    bodies = " | ".join(f"body_{i}" for i in range(len(tools)))
    lines = [f"start: {start}", f"body: {bodies}", r"WS: /[ \n]/"]
    for i, tool in enumerate(tools):
        head = f'{{"name": "{tool.name}", "{offer.syntax.arguments_key}": '
        lines.append(f'body_{i}: {json.dumps(head)} arguments_{i} "}}"')
        lines.append(f"arguments_{i}: {_json(_arguments(tool), _TOOL_OPTIONS)}")
    return "\n".join(lines) + "\n"


def _arguments(tool: Tool) -> dict[str, Any]:
    schema = _schema(tool.parameters, "tools")
    if schema.setdefault("type", "object") != "object":
        raise BadInput(f"the parameters of {tool.name} are not an object's schema", param="tools")
    return schema


def _schema(text: str, param: str) -> dict[str, Any]:
    """The parsed schema. Raises BadInput about ``param``."""
    try:
        schema = json.loads(text)
        steps = [m for m in _multiples(schema) if m > 0]
    except (ValueError, ArithmeticError, RecursionError):
        raise BadInput("the schema is not JSON, or is nested too deeply", param=param) from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise BadInput("a schema is a JSON object", param=param)
    if not all(step.is_finite() for step in steps) or _states(steps) > MAX_MULTIPLE:
        raise BadInput("the schema's multipleOf cannot be enforced: too large, or too many", param=param)
    return schema


def _states(steps: list[Decimal]) -> float:
    """About how many states a grammar of those multiples has. Several may meet in one number; then their least common
    multiple counts, in units of the last place that any of them has."""
    places = [step.adjusted() for step in steps] + [int(step.as_tuple().exponent) for step in steps]
    if any(abs(place) > 12 for place in places):
        return math.inf
    unit = min(places, default=0)
    return math.lcm(*(int(step.scaleb(-unit)) for step in steps))


def _multiples(value: Any) -> Iterator[Decimal]:
    if isinstance(value, dict):
        step = value.get("multipleOf")
        if isinstance(step, (int, float)):
            yield Decimal(str(step))
        for inner in value.values():
            yield from _multiples(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _multiples(inner)


def _json(schema: dict[str, Any], options: dict[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"
