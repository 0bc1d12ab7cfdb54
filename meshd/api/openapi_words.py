"""Small words to write JSON schemas with. Pure.

In what apps send, null means the same as absent, so every optional field may be null; in what they get, all is there.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

Schema = dict[str, object]

ANY: Schema = {}
BOOLEAN: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NO_NUL = "^[^\\u0000]*$"


def text(max_chars: int, *, least: int = 0) -> Schema:
    """A string without NUL."""
    return {"type": "string", "minLength": least, "maxLength": max_chars, "pattern": NO_NUL}


def number(low: float, high: float) -> Schema:
    """A number within bounds."""
    return {"type": "number", "minimum": low, "maximum": high}


def whole(low: int, high: int) -> Schema:
    """A whole number within bounds."""
    return {"type": "integer", "minimum": low, "maximum": high}


def words(*values: object) -> Schema:
    """One of these values."""
    return {"enum": list(values)}


def many(items: Schema, least: int, most: int) -> Schema:
    """A list with bounds."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def listed(items: Schema) -> Schema:
    """A list, as answers have it."""
    return {"type": "array", "items": items}


def ref(name: str) -> Schema:
    """A schema of the document, by name."""
    return {"$ref": f"#/components/schemas/{name}"}


def either(*schemas: Schema) -> Schema:
    """What one of these allows."""
    return {"anyOf": list(schemas)}


def nullable(schema: Schema) -> Schema:
    """That, or null."""
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    if set(schema) == {"enum"}:
        return words(*schema["enum"], None)  # type: ignore[misc] # `words` made it: a list
    return either(schema, {"type": "null"}) if schema else schema


def asked(required: Mapping[str, Schema], optional: Mapping[str, Schema]) -> Schema:
    """An object that an app sends: nothing else may be in it."""
    properties = {**required, **{name: nullable(schema) for name, schema in optional.items()}}
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(required),
        "additionalProperties": False,
    }


def told(properties: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object that an app gets; ``optional`` is there only sometimes."""
    both = {**properties, **(optional or {})}
    return {"type": "object", "properties": both, "required": sorted(properties), "additionalProperties": False}


_PLAIN: dict[object, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}


def schema_of(kind: Any) -> Schema:
    """The schema of a view: what `dataclasses.asdict` of it looks like as JSON."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return told({field.name: schema_of(hints[field.name]) for field in fields(kind)})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return words(*(member.value for member in kind))
    inner = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return either(*map(schema_of, inner))
    if get_origin(kind) is tuple and inner[1:] == (...,):
        return listed(schema_of(inner[0]))
    if get_origin(kind) is tuple:
        return {
            "type": "array",
            "prefixItems": [*map(schema_of, inner)],
            "minItems": len(inner),
            "maxItems": len(inner),
        }
    raise TypeError(f"no schema for {kind!r}")
