"""From a server's stream to numbered tokens, and from work to what a server is asked: pure, so every case is cheap."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.core.ad import Ability
from meshd.core.chat import Message, Tool, ToolCall, ToolChoice, ToolMode
from meshd.core.errors import BadInput, ContextOverflow, EngineFailed, Overloaded
from meshd.core.generation import Bias, FinishReason, Format, FormatKind, Generation, Prompt, Sampling, Token
from meshd.core.job import Embedding
from meshd.core.upstream import Learnt
from meshd.engine.sse import MAX_EVENT_BYTES, EventReader, EventTooLarge
from meshd.engine.upstream_faults import Garbled, Refusal, of_work
from meshd.engine.upstream_pace import Pace, Speed
from meshd.engine.upstream_request import embedding_requests, generation_request
from meshd.engine.upstream_stream import MAX_HELD_BYTES, MAX_PIECE_BYTES, Numbered, Reading, vectors_in

ABLE = Learnt((Ability.GENERATE, Ability.RESUME), chat=True, text=True, schema_field="json_schema", usage=True)
CHAT = Prompt(messages=(Message("developer", "be brief"), Message("user", "hello")))
NOTHING: tuple[Token, ...] = ()


def said(text: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One event of a chat."""
    delta = {**({"content": text} if text is not None else {}), **more.pop("delta", {})}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


@pytest.mark.parametrize("schema", ['{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', "{"])
def test_a_schema_that_is_no_json_is_the_requests_fault_before_anything_is_sent(schema: str) -> None:
    """Python reads more than JSON, and would fail to write it later: a task comes from another machine."""
    tools = Generation(CHAT, tools=(Tool("f", "", schema),))
    form = Generation(CHAT, format=Format(FormatKind.JSON_SCHEMA, schema))
    for request, param in ((tools, "tools"), (form, "response_format")):
        with pytest.raises(BadInput) as caught:
            generation_request("m", ABLE, request, NOTHING)
        assert caught.value.param == param


@pytest.mark.parametrize("index", ["0", [], 1.0, True])
def test_vectors_numbered_with_something_else_than_numbers_are_garbage(index: object) -> None:
    data = [{"index": index, "embedding": [1.0]}, {"index": 1, "embedding": [1.0]}]
    with pytest.raises(Garbled):
        vectors_in({"data": data}, 2)


def test_vectors_without_numbers_come_in_order() -> None:
    data = [{"index": None, "embedding": [1.0]}, {"embedding": [2.0]}]
    assert len(vectors_in({"data": data}, 2)[0]) == 2


def read(
    *events: dict[str, Any], first: int = 0, limit: int = 1000, skip: str = ""
) -> tuple[list[Token], FinishReason]:
    reading = Reading(Numbered(first, limit), skip)
    tokens = [token for event in events for token in reading.take(event)]
    rest, finish = reading.close()
    return [*tokens, *rest], finish


def text_of(tokens: list[Token]) -> str:
    return b"".join(token.piece for token in tokens).decode()


def delivered(*pieces: str) -> tuple[Token, ...]:
    return tuple(Token(place, 0, piece.encode()) for place, piece in enumerate(pieces))


# -- events


@given(st.lists(st.text(alphabet='abc {}:,"\u00e9', min_size=1), max_size=5), st.data())
def test_events_are_the_same_however_the_bytes_were_cut(texts: list[str], data: st.DataObject) -> None:
    stream = b": hello\n\n" + b"".join(f"event: x\r\ndata: {t}\r\n\r\n".encode() for t in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, found = EventReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == [t.encode() for t in texts]


def test_an_event_or_a_line_without_end_is_given_up() -> None:
    for start, more in ((b"data: ", b"x" * 65536), (b"", b"x" * 65536), (b"", b"data: " + b"x" * 1000 + b"\n")):
        reader = EventReader()
        with pytest.raises(EventTooLarge):
            reader.feed(start)
            for _ in range(2 * MAX_EVENT_BYTES // len(more)):
                reader.feed(more)


# -- tokens


def test_each_piece_is_a_token_and_what_the_server_counts_beyond_is_told_without_text() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    tokens, finish = read(said(""), said("Hel"), said("lo"), said(None, "stop"), {"choices": [], "usage": usage})
    assert [(t.index, t.id, t.piece) for t in tokens] == [
        (0, 0, b"Hel"),
        (1, 0, b"lo"),
        (2, 0, b""),
        (3, 0, b""),
        (4, 0, b""),
    ]
    assert finish is FinishReason.STOP


def test_a_text_completion_says_text() -> None:
    event = {"choices": [{"index": 0, "text": "abc", "finish_reason": "length"}]}
    tokens, finish = read(event, first=7)
    assert ([(t.index, t.piece) for t in tokens], finish) == ([(7, b"abc")], FinishReason.LENGTH)


@given(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 3))
def test_no_answer_has_more_tokens_than_asked_for_and_none_loses_text(texts: list[str], limit: int, first: int) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    events = [*map(said, texts), said(None, "stop")]
    tokens, _ = read(*events, {"choices": [], "usage": {"completion_tokens": 999}}, first=first, limit=first + limit)
    assert [t.index for t in tokens] == list(range(first, first + limit))
    assert text_of(tokens) == "".join(texts)


def test_a_long_piece_is_cut_between_characters() -> None:
    text = "\u20ac" * MAX_PIECE_BYTES
    tokens, _ = read(said(text), said(None, "stop"))
    assert max(len(t.piece) for t in tokens) <= MAX_PIECE_BYTES and len(tokens) > 3
    assert "".join(t.piece.decode() for t in tokens) == text


def test_a_server_that_goes_on_beyond_the_limit_is_given_up() -> None:
    with pytest.raises(Garbled):
        read(*[said("x" * 1000)] * (MAX_HELD_BYTES // 1000 + 1), limit=1)


def test_thoughts_are_work_but_no_text() -> None:
    tokens, _ = read(said(delta={"reasoning_content": "hm"}), said("yes"), said(None, "stop"))
    assert [t.piece for t in tokens] == [b"", b"yes"]


def test_blanks_that_were_delivered_are_not_said_twice() -> None:
    assert text_of(read(said(" "), said("\nnext"), said(None, "stop"), skip=" \n")[0]) == "next"
    assert text_of(read(said("next"), said(None, "stop"), skip=" ")[0]) == "next"
    assert text_of(read(said("\n  x"), said(None, "stop"), skip="\n\n")[0]) == "  x"


def test_calls_of_tools_become_text_that_says_the_same() -> None:
    def part(index: int, name: str, arguments: str) -> dict[str, Any]:
        return said(delta={"tool_calls": [{"index": index, "function": {"name": name, "arguments": arguments}}]})

    events = [
        said("Let me see."),
        part(0, "look", ""),
        part(0, "", '{"at": '),
        part(0, "", '"sky"}'),
        part(1, "wait", ""),
    ]
    tokens, finish = read(*events, said(None, "tool_calls"))
    calls = [json.loads(c.partition("</tool_call>")[0]) for c in text_of(tokens).split("<tool_call>")[1:]]
    assert calls == [{"name": "look", "arguments": {"at": "sky"}}, {"name": "wait", "arguments": {}}]
    assert text_of(tokens).startswith("Let me see.<tool_call>") and finish is FinishReason.STOP


@pytest.mark.parametrize(
    "events",
    [
        [said("Hel")],
        [said("Hel"), {"error": {"message": "out of memory"}}],
        [said("Hel", "content_filter")],
        [said("Hel", "abort")],
        [{"choices": ["x"]}],
        [said(delta={"content": ["x"]})],
        [
            said(delta={"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{"}}]}),
            said(None, "tool_calls"),
        ],
        [said(delta={"tool_calls": "x"})],
        [said(delta={"tool_calls": [{"index": n, "function": {"name": "f"}} for n in range(200)]})],
    ],
)
def test_what_is_not_complete_or_not_openais_is_no_answer(events: list[dict[str, Any]]) -> None:
    with pytest.raises(EngineFailed):
        read(*events)


def test_counts_come_in_two_languages() -> None:
    reading = Reading(Numbered(0, 9))
    reading.take(said("x", timings={"prompt_n": 3, "cache_n": 20}))
    assert (reading.counts.prompt, reading.counts.cached) == (23, 20)
    reading.take({"choices": [], "usage": {"prompt_tokens": True, "completion_tokens": -1}})
    assert (reading.counts.prompt, reading.counts.completion) == (23, None)


# -- vectors


def test_vectors_are_in_the_order_of_the_inputs() -> None:
    entries = [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1.5, -1]}]
    vectors, counted = vectors_in({"data": entries, "usage": {"prompt_tokens": 4}}, 2)
    assert vectors == [b"\x00\x00\xc0?\x00\x00\x80\xbf", b"\x00\x00\x00@"] and counted == 4


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        [{"index": 1, "embedding": [1]}],
        [{"embedding": []}],
        [{"embedding": ["x"]}],
        [{"embedding": [1e300]}],
        ["x"],
    ],
)
def test_what_is_no_vector_is_refused(data: object) -> None:
    with pytest.raises(Garbled):
        vectors_in({"data": data}, 1)


# -- requests


def test_a_chat_is_asked_for_with_everything_that_bears_on_it() -> None:
    sampling = Sampling(0.5, 0.9, presence_penalty=1, seed=2**40 + 7, biases=(Bias(5, -3),))
    work = Generation(CHAT, sampling, max_tokens=50, stop=("a", "b", "c", "d", "e"))
    request = generation_request("big", replace(ABLE, extras=("top_k", "min_p")), work, NOTHING)
    assert (request.path, request.limit, request.tool_syntax) == ("/chat/completions", 50, "")
    assert request.body == {
        "model": "big",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.0,
        "seed": 7,
        "presence_penalty": 1,
        "logit_bias": {"5": -3},
        "max_tokens": 50,
        "stop": ["a", "b", "c", "d"],
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
    }


def test_tools_and_formats_go_along() -> None:
    turn = Message("assistant", "", calls=(ToolCall("c1", "look", '{"at": 1}'),))
    chat = Prompt(messages=(Message("user", "?"), turn, Message("tool", "blue", call_id="c1")))
    choice = ToolChoice(ToolMode.REQUIRED, "look", parallel=False)
    request = generation_request(
        "big", ABLE, Generation(chat, tools=(Tool("look", "see", '{"type": "object"}'),), tool_choice=choice), NOTHING
    )
    assert request.tool_syntax == "hermes"
    assert request.body["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert request.body["parallel_tool_calls"] is False
    assert request.body["tools"][0]["function"] == {
        "name": "look",
        "description": "see",
        "parameters": {"type": "object"},
    }
    assert request.body["messages"][1]["tool_calls"][0]["function"]["name"] == "look"
    assert request.body["messages"][2] == {"role": "tool", "content": "blue", "tool_call_id": "c1"}
    form = Format(FormatKind.JSON_SCHEMA, '{"type": "array"}')
    asked = generation_request("big", ABLE, Generation(CHAT, format=form), NOTHING).body["response_format"]
    assert asked["json_schema"]["schema"] == {"type": "array"}
    asked = generation_request(
        "big",
        replace(ABLE, schema_field="json_object"),
        Generation(CHAT, format=Format(FormatKind.JSON_OBJECT)),
        NOTHING,
    ).body
    assert asked["response_format"] == {"type": "json_object", "schema": {"type": "object"}}


def test_a_text_goes_on_with_what_was_delivered() -> None:
    work = Generation(Prompt(text="Once "), max_tokens=10)
    request = generation_request("big", ABLE, work, delivered("upon ", "a "))
    assert (request.path, request.first, request.limit, request.skip) == ("/completions", 2, 10, "")
    assert request.body["prompt"] == "Once upon a " and request.body["max_tokens"] == 8


def test_a_chat_goes_on_in_the_assistants_turn() -> None:
    request = generation_request(
        "big", replace(ABLE, continue_field=True), Generation(CHAT), delivered("The s", "ky \n")
    )
    assert request.body["messages"][-1] == {"role": "assistant", "content": "The sky"}
    assert request.skip == " \n" and request.body["continue_final_message"] is True
    plain = generation_request("big", ABLE, Generation(CHAT), delivered(" "))
    assert plain.body["messages"][-1]["role"] == "user" and "continue_final_message" not in plain.body


@pytest.mark.parametrize(
    ("work", "learnt", "param"),
    [
        (Generation(CHAT, exact=True), ABLE, "mesh.exact"),
        (Generation(CHAT, top_logprobs=0), ABLE, "logprobs"),
        (Generation(Prompt(tokens=(1, 2)), max_tokens=1), ABLE, "prompt"),
        (Generation(Prompt(text="x"), max_tokens=1), replace(ABLE, text=False), "prompt"),
        (Generation(Prompt(text="x")), ABLE, "max_tokens"),
        (Generation(CHAT), replace(ABLE, chat=False), "messages"),
        (Generation(CHAT, Sampling(top_k=3)), ABLE, "top_k"),
        (Generation(CHAT, Sampling(min_p=0.1)), ABLE, "min_p"),
        (Generation(CHAT, format=Format(FormatKind.JSON_OBJECT)), replace(ABLE, schema_field=""), "response_format"),
        (Generation(Prompt(text="x"), max_tokens=1, format=Format(FormatKind.JSON_OBJECT)), ABLE, "response_format"),
        (Generation(Prompt(text="x"), max_tokens=1, tools=(Tool("f"),)), ABLE, "tools"),
    ],
)
def test_what_the_server_would_not_do_is_refused_by_name(work: Generation, learnt: Learnt, param: str) -> None:
    with pytest.raises(BadInput) as refused:
        generation_request("big", learnt, work, NOTHING)
    assert refused.value.param == param


def test_what_cannot_go_on_in_its_middle_is_no_bad_request_but_a_lost_attempt() -> None:
    formatted = Generation(CHAT, format=Format(FormatKind.JSON_OBJECT))
    called = Generation(CHAT, tools=(Tool("f"),))
    for work, tokens in (
        (formatted, delivered("{")),
        (called, delivered("<tool_call>")),
        (Generation(CHAT), (Token(0, 0, b"\xc3"),)),
    ):
        with pytest.raises(EngineFailed):
            generation_request("big", ABLE, work, tokens)


def test_inputs_are_asked_for_some_at_a_time_and_must_be_texts() -> None:
    bodies = embedding_requests("big", Embedding(tuple(Prompt(text=str(n)) for n in range(70))))
    assert [len(body["input"]) for body in bodies] == [32, 32, 6] and bodies[2]["input"][-1] == "69"
    with pytest.raises(BadInput):
        embedding_requests("big", Embedding((Prompt(tokens=(1,)),)))


# -- refusals and pace


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "temperature is wrong", BadInput),
        (400, "maximum context length is 4096 tokens", ContextOverflow),
        (413, "too large", ContextOverflow),
        (401, "no", EngineFailed),
        (404, "no such model", EngineFailed),
        (429, "slow down", Overloaded),
        (500, "oops", EngineFailed),
        (503, "loading", Overloaded),
    ],
)
def test_a_refusal_says_whose_fault_it_is(status: int, text: str, kind: type[Exception]) -> None:
    assert type(of_work(Refusal(status, text, "", None))) is kind


def test_how_long_to_wait_is_the_servers_word_within_bounds() -> None:
    waits = [of_work(Refusal(429, "", "", wait_s)) for wait_s in (None, 7.0, 1e6)]
    assert [e.retry_after_s for e in waits if isinstance(e, Overloaded)] == [1.0, 7.0, 60.0]


def test_speed_is_that_of_answers_long_enough_to_tell() -> None:
    speed = Speed()
    speed.note(Pace(10, 0.1, 3, 0.1), 1)
    assert speed.generation_tokens_per_s == speed.prefill_tokens_per_s == 0 and speed.rates() == ()
    speed.note(Pace(200, 0.5, 101, 2.0), 1)
    speed.note(Pace(200, 0.5, 101, 4.0), 3)
    assert speed.prefill_tokens_per_s == pytest.approx(400)
    assert speed.generation_tokens_per_s == pytest.approx(45)
    assert [(r.sequences, round(r.tokens_per_s)) for r in speed.rates()] == [(1, 50), (2, 50)]
    speed.note(Pace(0, 0, 10**6, 0), 1000)
    assert len(speed.rates()) == 3
