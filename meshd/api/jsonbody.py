"""Bytes of a request body to a JSON value, strictly. Pure."""

from __future__ import annotations

import json

from meshd.core.errors import BadInput

_HINT = "send one JSON object, encoded as UTF-8"


def _no_constant(name: str) -> object:
    raise BadInput(f"{name} is not JSON", hint=_HINT)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Two parsers that read one body differently is how checks are passed by; so a key may occur once."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise BadInput("the JSON body names a key twice", hint=_HINT)
    return fields


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)


def decode(body: bytes) -> object:
    """The JSON value in ``body``; an empty body is an empty object.

    Raises BadInput (the sender's fault) on invalid UTF-8, bad JSON, NaN or Infinity, a key given twice, a number
    of absurd length, or nesting deeper than the interpreter's stack.
    """
    if not body.strip():
        return {}
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadInput("the body is not valid UTF-8", hint=_HINT) from None
    except json.JSONDecodeError as error:
        raise BadInput(f"the body is not JSON: {error.msg} at character {error.pos}", hint=_HINT) from None
    except RecursionError:
        raise BadInput("the JSON body is nested too deeply", hint=_HINT) from None
    except ValueError:  # an integer of more digits than the interpreter converts
        raise BadInput("the JSON body holds a number of absurd length", hint=_HINT) from None
