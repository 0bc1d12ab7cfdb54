"""The request parsers: what they accept, what they refuse, and that they raise nothing but BadInput."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.api import parse_mesh
from meshd.api.asked import TextRequest
from meshd.api.jsonbody import decode
from meshd.api.parse_chat import parse_chat
from meshd.api.parse_completion import parse_completion
from meshd.api.parse_responses import parse_responses
from meshd.api.parse_vectors import parse_detokenize, parse_embeddings, parse_tokenize
from meshd.core import limits
from meshd.core.chat import Message, Tool, ToolCall, ToolChoice, ToolMode
from meshd.core.classes import DataClass
from meshd.core.errors import BadInput
from meshd.core.generation import Bias, Format, FormatKind, Generation, Prompt
from meshd.core.ids import job_id

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}


CALL: dict[str, Any] = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
DEEP: dict[str, Any] = {"a": []}
for _ in range(100):
    DEEP = {"a": [DEEP]}

SCHEMA_PARAM = "response_format.json_schema.schema"
PART = "input[0].content[0].type"
FORM = "text.format.schema"
TOOL_PARAM = "tools[0].function"
DESCRIPTION = "tools[0].function.description"
BAD_CALLS: list[tuple[object, str]] = [
    ({}, ".id"),
    ({**CALL, "id": 5}, ".id"),
    ({**CALL, "type": "custom"}, ".type"),
    ({**CALL, "function": None}, ".function"),
    ({**CALL, "function": {"name": "a b"}}, ".function.name"),
    ({**CALL, "function": {"name": "f", "arguments": {}}}, ".function.arguments"),
    ({**CALL, "extra": 1}, ".extra"),
]


def refused(body: object, param: str | None, parser: Any = parse_chat) -> str:
    with pytest.raises(BadInput) as caught:
        parser(body)
    assert caught.value.param == param
    return caught.value.message


def only(request: TextRequest) -> Generation:
    (generation,) = request.generations
    return generation


def test_the_defaults() -> None:
    request = parse_chat(CHAT)
    generation = only(request)
    assert (generation.max_tokens, generation.stop, generation.exact) == (None, (), False)
    assert (generation.sampling.temperature, generation.sampling.top_p) == (1.0, 1.0)
    assert (generation.tools, generation.top_logprobs, generation.format) == ((), None, Format())
    assert (request.stream, request.include_usage, request.seed, request.n) == (False, False, None, 1)
    assert request.constraints.data_class is DataClass.INTERNAL
    (job,) = request.jobs(lambda: job_id(bytes(16)), 9)
    assert job.generation is not None and job.generation.sampling.seed == 9
    assert only(parse_completion(TEXT)).max_tokens == 16


@pytest.mark.parametrize(("seed", "first"), [(None, 9), (0, 0), (2**63 - 1, 2**63 - 1)])
def test_several_answers_have_seeds_that_follow_each_other(seed: int | None, first: int) -> None:
    request = parse_completion({**TEXT, "prompt": ["a", "b"], "n": 3, "seed": seed})
    jobs = request.jobs(lambda: job_id(bytes(16)), 9)
    told = [(j.generation.prompt.text, j.generation.sampling.seed) for j in jobs if j.generation]
    assert told == [(text, (first + i) % 2**63) for text in "ab" for i in range(3)]


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
    assert isinstance(parse_chat({**CHAT, **harmless}), TextRequest)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
        ("functions", [{}]),
        ("function_call", {"name": "f"}),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(name: str, value: object) -> None:
    assert "not supported yet" in refused({**CHAT, name: value}, name)


def test_old_tools_are_refused_with_a_hint_to_the_new() -> None:
    with pytest.raises(BadInput) as caught:
        parse_chat({**CHAT, "functions": [{"name": "f"}]})
    assert "tools" in caught.value.hint


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
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "", "refusal": "no"}]}, "messages[0].refusal"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        *(
            ({"messages": [{"role": "assistant", "tool_calls": [call]}]}, f"messages[0].tool_calls[0]{where}")
            for call, where in BAD_CALLS
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL] * 129}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "x"}] * (limits.MAX_MESSAGES + 1)}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * (limits.MAX_PROMPT_BYTES + 1)}]}, "messages"),
    ],
)
def test_bad_chat_fields_are_named(change: dict[str, object], param: str) -> None:
    refused({**CHAT, **change}, param)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": True}, "n"),
    ({"n": 1.0}, "n"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"logit_bias": []}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
    ({"logit_bias": {"\u0661": 1}}, "logit_bias.\\u0661"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"5": None}}, "logit_bias.5"),
    ({"logit_bias": {"5": "1"}}, "logit_bias.5"),
    ({"logit_bias": {"4294967296": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 1, "01": 1}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "text", "more": 1}}, "response_format.more"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {**SCHEMA, "json_schema": {"name": "s"}}}, "response_format.json_schema.schema"),
    ({"response_format": {**SCHEMA, "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
    ({"response_format": {**SCHEMA, "json_schema": {"name": "a b", "schema": {}}}}, "response_format.json_schema.name"),
    *(
        ({"response_format": {**SCHEMA, "json_schema": {"name": "s", "schema": schema}}}, SCHEMA_PARAM)
        for schema in (True, [], "{}", 5, DEEP, {"a": "\ud800"}, {"a": 1e999}, {"a": "x" * 65536})
    ),
    ({"tools": {}}, "tools"),
    ({"tools": [TOOL] * 129}, "tools"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tools": [5]}, "tools[0]"),
    ({"tools": [{**TOOL, "type": "custom"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": DEEP}}]}, "tools[0].function.parameters"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 65537}}]},
        f"{TOOL_PARAM}.description",
    ),
    ({"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 65536}}]}, TOOL_PARAM),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": 5}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [TOOL], "parallel_tool_calls": 1}, "parallel_tool_calls"),
]


@pytest.mark.parametrize(("change", "param"), OPTIONS)
def test_bad_options_are_named(change: dict[str, object], param: str) -> None:
    refused({**CHAT, **change}, param)


def test_tools_and_choices_reach_the_generation() -> None:
    bare = {"type": "function", "function": {"name": "g", "description": "d", "strict": True}}
    named = {"type": "function", "function": {"name": "g"}}
    generation = only(parse_chat({**CHAT, "tools": [TOOL, bare], "tool_choice": named, "parallel_tool_calls": False}))
    assert generation.tools == (
        Tool("f", "", '{"type":"object"}'),
        Tool("g", "d", '{"type":"object","properties":{}}'),
    )
    assert generation.tool_choice == ToolChoice(ToolMode.REQUIRED, "g", False)
    assert only(parse_chat({**CHAT, "tools": [TOOL]})).tool_choice == ToolChoice()
    none = only(parse_chat({**CHAT, "tools": [TOOL], "tool_choice": "none", "response_format": SCHEMA}))
    assert (none.tool_choice.mode, none.format.kind) == (ToolMode.NONE, FormatKind.JSON_SCHEMA)


def test_a_conversation_with_tools_reaches_the_prompt() -> None:
    asked = {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "function_call": None}
    told = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "4"}]}
    messages = only(parse_chat({**CHAT, "messages": [*CHAT["messages"], asked, told]})).prompt.messages
    assert messages[1:] == (
        Message("assistant", "", (ToolCall("call_1", "f", "{}"),)),
        Message("tool", "4", (), "call_1", "f"),
    )


def test_probabilities_biases_and_formats_reach_the_generation() -> None:
    generation = only(
        parse_chat({**CHAT, "logprobs": True, "top_logprobs": 2, "logit_bias": {"7": -100}, "response_format": SCHEMA})
    )
    assert (generation.top_logprobs, generation.sampling.biases) == (2, (Bias(7, -100.0),))
    assert generation.format == Format(FormatKind.JSON_SCHEMA, '{"type":"object"}')
    assert only(parse_chat({**CHAT, "logprobs": True})).top_logprobs == 0
    assert only(parse_chat({**CHAT, "response_format": {"type": "json_object"}})).format.kind == "json_object"


BAD_PROMPTS: list[object] = [
    None, 5, True, [], [[]], {}, [None], [True], [["a"]], ["a", 1], [1, "a"], ["a", [1]], [1.5], [-1], [2**31],
    [[1, -1]],
    [10**30], ["a"] * 17, "a\x00", "\udfff", "x" * (limits.MAX_PROMPT_BYTES + 1),
    ["x" * (limits.MAX_PROMPT_BYTES // 2 + 1)] * 2,
]  # fmt: skip


@pytest.mark.parametrize("prompt", BAD_PROMPTS)
def test_bad_prompts_are_named(prompt: object) -> None:
    refused({**TEXT, "prompt": prompt}, "prompt", parse_completion)
    if prompt != ["a"] * 17:
        refused({"model": "m", "input": prompt}, "input", parse_embeddings)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", [Prompt(text="a")]),
        ("", [Prompt(text="")]),
        (["a", "b"], [Prompt(text="a"), Prompt(text="b")]),
        ([1, 2], [Prompt(tokens=(1, 2))]),
        ([[1, 2], [3]], [Prompt(tokens=(1, 2)), Prompt(tokens=(3,))]),
        (["x" * limits.MAX_PROMPT_BYTES], [Prompt(text="x" * limits.MAX_PROMPT_BYTES)]),
    ],
)
def test_prompts_in_all_their_forms(prompt: object, prompts: list[Prompt]) -> None:
    assert [g.prompt for g in parse_completion({**TEXT, "prompt": prompt}).generations] == prompts
    assert list(parse_embeddings({"model": "m", "input": prompt}).embedding.inputs) == prompts


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"echo": True, "prompt": [1]}, "echo"),
        ({"tools": []}, "tools"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_bad_completion_fields_are_named(change: dict[str, object], param: str) -> None:
    refused({**TEXT, **change}, param, parse_completion)


@pytest.mark.parametrize(
    ("parser", "change", "param"),
    [
        (parse_embeddings, {"encoding_format": "hex"}, "encoding_format"),
        (parse_embeddings, {"dimensions": 0}, "dimensions"),
        (parse_embeddings, {"input": ["a"] * 2049}, "input"),
        (parse_embeddings, {"temperature": 1}, "temperature"),
        (parse_tokenize, {}, "text"),
        (parse_tokenize, {"text": 5}, "text"),
        (parse_tokenize, {"text": "x", "messages": []}, "text"),
        (parse_tokenize, {"messages": []}, "messages"),
        (parse_tokenize, {"text": "x", "pieces": 1}, "pieces"),
        (parse_tokenize, {"text": "x", "special": "y"}, "special"),
        (parse_detokenize, {}, "tokens"),
        (parse_detokenize, {"tokens": []}, "tokens"),
        (parse_detokenize, {"tokens": [1.0]}, "tokens"),
        (parse_detokenize, {"tokens": [-1]}, "tokens"),
        (parse_detokenize, {"tokens": [2**31]}, "tokens"),
        (parse_detokenize, {"tokens": [0], "text": "x"}, "text"),
        (parse_responses, {}, "input"),
        (parse_responses, {"input": []}, "input"),
        (parse_responses, {"input": "x\x00"}, "input"),
        (parse_responses, {"input": "x" * (limits.MAX_PROMPT_BYTES + 1)}, "input"),
        (parse_responses, {"input": [{"type": "function_call", "name": "f"}]}, "input[0].type"),
        (parse_responses, {"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        (parse_responses, {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, PART),
        (parse_responses, {"input": [{"role": "user"}]}, "input[0].content"),
        *(
            (parse_responses, {"input": "x", name: value}, name)
            for name, value in (
                ("previous_response_id", "resp_1"), ("tools", [TOOL]), ("background", True), ("conversation", "c"),
                ("include", ["message.output_text.logprobs"]), ("prompt", {"id": "p"}), ("truncation", "auto"),
                ("reasoning", {"effort": "high"}), ("max_output_tokens", 0), ("text", 5), ("metadata", []),
                ("metadata", {str(i): "x" for i in range(17)}), ("temperature", 6), ("messages", []),
            )
        ),
        (parse_responses, {"input": "x", "metadata": {"a": 5}}, "metadata.a"),
        (parse_responses, {"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        (parse_responses, {"input": "x", "text": {"format": {"type": "json_schema", "name": "s"}}}, FORM),
    ],
)  # fmt: skip
def test_bad_fields_of_the_other_routes_are_named(parser: Any, change: dict[str, object], param: str) -> None:
    refused({"model": "m", **({"input": "x"} if parser is parse_embeddings else {}), **change}, param, parser)


def test_a_response_is_asked_in_messages() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    said = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    output = [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}]
    request = parse_responses(
        {
            "model": "m",
            "instructions": "be short",
            "input": [{"role": "user", "content": parts}, {**said, "content": output}],
            "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}},
            "max_output_tokens": 5,
        }
    )
    generation = only(request)
    assert generation.prompt.messages == (
        Message("system", "be short"),
        Message("user", "ab"),
        Message("assistant", "c"),
    )
    assert (generation.max_tokens, generation.format.schema) == (5, '{"type":"object"}')


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
    top_logprobs logit_bias tool_choice parallel_tool_calls tool_calls tool_call_id function name arguments parameters
    json_schema schema input instructions text format metadata tokens pieces special dimensions encoding_format echo
    class regions exact include_usage user site region clearance valid_s uses labels worker path
"""
FIELDS = FIELD_NAMES.split()
NAMED = st.dictionaries(
    st.sampled_from(FIELDS),
    JSON
    | st.sampled_from(["user", "text", "eu", "public", "m", "function", "json_schema", "auto", [TOOL], [CALL], SCHEMA])
    | st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON | st.just("user") | st.just("text"), max_size=4)),
    max_size=8,
)
PARSERS = [
    parse_chat,
    parse_completion,
    parse_responses,
    parse_embeddings,
    parse_tokenize,
    parse_detokenize,
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
