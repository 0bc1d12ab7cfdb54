"""The request parsers: what they accept, what they refuse, and that they raise nothing but BadInput."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.api import parse_mesh
from meshd.api.jsonbody import decode
from meshd.api.parse import ChatRequest, parse_chat, parse_completion
from meshd.core import limits
from meshd.core.classes import DataClass
from meshd.core.errors import BadInput
from meshd.core.ids import job_id

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}


def refused(body: object, param: str | None, parser: Any = parse_chat) -> str:
    with pytest.raises(BadInput) as caught:
        parser(body)
    assert caught.value.param == param
    return caught.value.message


def test_the_defaults() -> None:
    request = parse_chat(CHAT)
    generation = request.generation
    assert (generation.max_tokens, generation.stop, generation.exact) == (None, (), False)
    assert (generation.sampling.temperature, generation.sampling.top_p) == (1.0, 1.0)
    assert (request.stream, request.include_usage, request.seed) == (False, False, None)
    assert request.constraints.data_class is DataClass.INTERNAL
    assert request.job(job_id(bytes(16)), 9).generation.sampling.seed == 9  # type: ignore[union-attr]
    assert parse_completion(TEXT).generation.max_tokens == 16


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "x", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": None},
        {"logprobs": False, "response_format": {"type": "text"}, "tools": [], "tool_choice": "none"},
        {"logit_bias": {}, "n": 1, "audio": None, "modalities": ["text"], "stop": None, "seed": None, "mesh": None},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"max_tokens": 3, "max_completion_tokens": 3},
    ],
)
def test_harmless_fields_pass(harmless: dict[str, object]) -> None:
    assert isinstance(parse_chat({**CHAT, **harmless}), ChatRequest)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "text", "more": 1}),
        ("logprobs", True),
        ("logprobs", 0),
        ("top_logprobs", 3),
        ("logit_bias", {"5": 1}),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("n", 2),
        ("n", True),
        ("n", 1.0),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(name: str, value: object) -> None:
    assert "not supported yet" in refused({**CHAT, name: value}, name)


@pytest.mark.parametrize(("name", "value"), [("best_of", 2), ("echo", True), ("suffix", "x"), ("logprobs", 0)])
def test_the_same_for_completions(name: str, value: object) -> None:
    assert "not supported yet" in refused({**TEXT, name: value}, name, parse_completion)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"model": "a" * 201}, "model"),
        ({"temperature": 5.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "5"}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 513}, "stop"),
        ({"stop": ["\u00e9" * 300]}, "stop"),
        ({"stop": "\ud800"}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"mesh": []}, "mesh"),
        ({"mesh": {"klass": "public"}}, "mesh.klass"),
        ({"mesh": {"class": "secret"}}, "mesh.class"),
        ({"mesh": {"regions": "eu"}}, "mesh.regions"),
        ({"mesh": {"regions": ["EU!"]}}, "mesh.regions"),
        ({"mesh": {"exact": "yes"}}, "mesh.exact"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "x"}] * (limits.MAX_MESSAGES + 1)}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * (limits.MAX_PROMPT_BYTES + 1)}]}, "messages"),
    ],
)
def test_bad_chat_fields_are_named(change: dict[str, object], param: str) -> None:
    refused({**CHAT, **change}, param)


@pytest.mark.parametrize(
    "prompt", [None, 5, [1, 2], ["a", "b"], [], [["a"]], "a\x00", "\udfff", "x" * (limits.MAX_PROMPT_BYTES + 1)]
)
def test_bad_prompts_are_named(prompt: object) -> None:
    refused({**TEXT, "prompt": prompt}, "prompt", parse_completion)


def test_a_prompt_of_full_size_and_a_list_of_one_pass() -> None:
    full = "x" * limits.MAX_PROMPT_BYTES
    assert parse_completion({**TEXT, "prompt": [full]}).generation.prompt.text == full


def test_an_unknown_key_is_shown_short_and_printable() -> None:
    message = refused({**CHAT, "\ud800" + "é" * 500: 1}, "\\ud800" + "\\xe9" * 59)
    assert message.isascii()


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
        b"\x00",
        b'{"a": "\x01"}',
        b"{} {}",
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadInput):
        decode(body)


def test_an_empty_body_is_an_empty_object() -> None:
    assert decode(b" \n") == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELD_NAMES = """
    model messages prompt stream stream_options temperature top_p top_k min_p seed stop max_tokens n
    max_completion_tokens presence_penalty mesh tools logprobs response_format role content type text
    class regions exact include_usage user site region clearance valid_s uses labels worker path
"""
FIELDS = FIELD_NAMES.split()
NAMED = st.dictionaries(
    st.sampled_from(FIELDS),
    JSON
    | st.sampled_from(["user", "text", "eu", "public", "m"])
    | st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON | st.just("user") | st.just("text"), max_size=4)),
    max_size=8,
)
PARSERS = [
    parse_chat,
    parse_completion,
    parse_mesh.parse_share,
    parse_mesh.parse_add_model,
    parse_mesh.parse_invite,
    parse_mesh.parse_noop,
    parse_mesh.parse_nothing,
    lambda body: parse_mesh.parse_drain(body, 1.0),
]


@given(JSON | NAMED | NAMED.map(lambda change: {**CHAT, **change}) | NAMED.map(lambda change: {**TEXT, **change}))
def test_parsers_raise_only_bad_input_and_say_it_in_ascii_param(body: object) -> None:
    for parser in PARSERS:
        try:
            parser(body)
        except BadInput as error:
            json.dumps(error.message).encode()
            assert error.param is None or error.param.isascii()


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_decode_raises_only_bad_input(body: bytes) -> None:
    try:
        decode(body)
    except BadInput as error:
        assert error.message
