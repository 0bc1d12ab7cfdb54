"""The options that several routes share: how to sample, when to stop, in which form, where to run. Pure.

Every function raises only BadInput, the sender's fault.
"""

from __future__ import annotations

import json
import re

from meshd.api.fields import Fields
from meshd.core import limits
from meshd.core.classes import DataClass, Region
from meshd.core.errors import BadInput
from meshd.core.generation import Bias, Format, FormatKind, Sampling
from meshd.core.job import Constraints

HINT = "remove it; the fields of OpenAI's API and the object 'mesh' are understood"

IGNORED = (
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)
"""What cannot change an answer."""

MAX_CHOICES = 16
"""Answers to one prompt, each a job of its own."""

MAX_SCHEMA_DEPTH = 64
"""A grammar is compiled from a schema by descent; nobody writes one this deep."""

_FORMAT_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_TOKEN_ID = re.compile(r"[0-9]{1,10}")


def refuse_meaningful(fields: Fields, neutral: dict[str, tuple[object, ...]], hint: str = "leave it out") -> None:
    """Let pass only the values that ask for nothing. Types must match: ``True`` is not the number 1."""
    for name, values in neutral.items():
        value = fields.raw(name)
        if value is not None and not any(type(value) is type(v) and value == v for v in values):
            raise BadInput(f"{fields.param(name)} is not supported yet", param=fields.param(name), hint=hint)


def sampling_of(fields: Fields) -> tuple[Sampling, int | None]:
    """How to sample, and the seed that the app named."""
    plain = Sampling()

    def number(name: str, low: float, high: float, default: float) -> float:
        value = fields.number(name, low, high)
        return default if value is None else value

    seed = fields.integer("seed", 0, 2**63 - 1)
    sampling = Sampling(
        temperature=number("temperature", 0, 5, plain.temperature),
        top_p=number("top_p", 0, 1, plain.top_p),
        top_k=fields.integer("top_k", 0, 1_000_000) or 0,
        min_p=number("min_p", 0, 1, plain.min_p),
        presence_penalty=number("presence_penalty", -2, 2, plain.presence_penalty),
        frequency_penalty=number("frequency_penalty", -2, 2, plain.frequency_penalty),
        seed=seed or 0,
        biases=_biases(fields.raw("logit_bias")),
    )
    return sampling, seed


def _biases(value: object) -> tuple[Bias, ...]:
    if value is None:
        return ()
    fields = Fields(value, prefix="logit_bias.")
    assert isinstance(value, dict)  # noqa: S101 - Fields refused anything else
    if len(value) > limits.MAX_BIASES:
        raise BadInput(f"logit_bias has at most {limits.MAX_BIASES} entries", param="logit_bias")
    return tuple(_bias(fields, key) for key in value)


def _bias(fields: Fields, key: str) -> Bias:
    if not _TOKEN_ID.fullmatch(key):
        raise BadInput(
            f'{fields.param(key)}: the keys of logit_bias are token ids, such as "42"', param=fields.param(key)
        )
    bias = fields.number(key, -100, 100)
    if bias is None:
        raise BadInput(f"{fields.param(key)} must be a number between -100 and 100", param=fields.param(key))
    return Bias(int(key), bias)


def stop_of(fields: Fields) -> tuple[str, ...]:
    """One stop string, or several."""
    if isinstance(fields.raw("stop"), str):
        text = fields.text("stop", max_chars=limits.MAX_STOP_BYTES)
        return () if text is None else (text,)
    return fields.texts("stop", max_items=limits.MAX_STOPS, max_chars=limits.MAX_STOP_BYTES)


def stream_of(fields: Fields) -> tuple[bool, bool]:
    """Whether to stream, and whether the stream ends with the usage."""
    stream = fields.boolean("stream") or False
    value = fields.raw("stream_options")
    if value is None:
        return stream, False
    if not stream:
        raise BadInput("stream_options goes with stream: true only", param="stream_options")
    options = Fields(value, prefix="stream_options.")
    include = options.boolean("include_usage") or False
    options.ignore("include_obfuscation")
    options.finish()
    return stream, include


def mesh_of(fields: Fields) -> tuple[Constraints, bool]:
    """Where the work may run, and whether the answer must be exact."""
    value = fields.raw("mesh")
    if value is None:
        return Constraints(), False
    mesh = Fields(value, prefix="mesh.")
    name = mesh.text("class", max_chars=40)
    data_class = Constraints().data_class if name is None else DataClass.parse(name, param="mesh.class")
    regions = mesh.texts("regions", max_items=16, max_chars=300)
    exact = mesh.boolean("exact") or False
    mesh.finish()
    return Constraints(data_class, tuple(_region(r) for r in regions)), exact


def _region(path: str) -> Region:
    try:
        return Region(path)
    except BadInput as error:
        raise BadInput(error.message, param="mesh.regions", hint=error.hint) from None


def schema_text(value: object, param: str) -> str:
    """The JSON text of a schema that came as an object."""
    if not isinstance(value, dict):
        raise BadInput(f"{param} must be a JSON schema: an object", param=param)
    _check_depth(value, param)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size_bytes = len(text.encode())
    except ValueError:  # numbers beyond float64, or lone surrogates
        raise BadInput(f"{param} holds a number or a text that cannot be written as JSON", param=param) from None
    if size_bytes > limits.MAX_SCHEMA_BYTES:
        raise BadInput(f"{param} is larger than {limits.MAX_SCHEMA_BYTES} bytes", param=param)
    return text


def _check_depth(value: object, param: str) -> None:
    level = [value]
    for _ in range(MAX_SCHEMA_DEPTH):
        inner = [x for v in level if isinstance(v, dict | list) for x in (v.values() if isinstance(v, dict) else v)]
        level = [v for v in inner if isinstance(v, dict | list)]
        if not level:
            return
    raise BadInput(f"{param} is nested more than {MAX_SCHEMA_DEPTH} deep", param=param)


def response_format(value: object) -> Format:
    """Chat's ``response_format``."""
    if value is None:
        return Format()
    fields = Fields(value, prefix="response_format.")
    kind = format_kind(fields)
    if kind is not FormatKind.JSON_SCHEMA:
        fields.finish()
        return Format(kind)
    inner = Fields(_required(fields, "json_schema"), prefix="response_format.json_schema.")
    fields.finish()
    schema = named_schema(inner)
    inner.finish()
    return Format(kind, schema)


def format_kind(fields: Fields) -> FormatKind:
    """The ``type`` of a format."""
    name = fields.required_text("type", max_chars=40)
    try:
        return FormatKind(name)
    except ValueError:
        raise BadInput(
            f"{fields.param('type')}: no such format",
            param=fields.param("type"),
            hint="one of: text, json_object, json_schema",
        ) from None


def named_schema(fields: Fields) -> str:
    """The schema's text out of {name, schema, strict?, description?}. It binds the answer, strict or not."""
    name = fields.required_text("name", max_chars=64)
    if not _FORMAT_NAME.fullmatch(name):
        raise BadInput(f"{fields.param('name')} has 1 to 64 of a-z, A-Z, 0-9, _ and -", param=fields.param("name"))
    fields.text("description", max_chars=limits.MAX_SCHEMA_BYTES)
    fields.boolean("strict")
    return schema_text(_required(fields, "schema"), fields.param("schema"))


def _required(fields: Fields, name: str) -> object:
    value = fields.raw(name)
    if value is None:
        raise BadInput(f"{fields.param(name)} is required", param=fields.param(name))
    return value
