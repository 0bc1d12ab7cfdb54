"""What answers say to the letter: calls of tools, probabilities, several answers at once, vectors, tokens."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio

from meshd.core.errors import NoWorker
from meshd.core.generation import Alternative, FinishReason, Score, Token
from meshd.core.job import Job, TaskKind
from meshd.node.views import AnswerEvent, ItemsDelta, Loading, TextDelta
from tests.api.fake_service import NODE, FakeService, done, opened, plays, says, says_then_hangs, works
from tests.api.running import HELLO, data_of, events_of, read_until, running
from tests.helpers import until

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'


def calling(*texts: str, finish: FinishReason = FinishReason.STOP) -> FakeService:
    return FakeService(plays(opened("hermes"), *(TextDelta(t, 1) for t in texts), done(len(texts), finish)))


def deltas(answer: httpx.Response, index: int = 0) -> list[dict[str, Any]]:
    """What the stream said of one choice."""
    chunks = [data_of(event) for event in events_of(answer.text) if event != "data: [DONE]" and event[0] != ":"]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return [choice["delta"] for choice in choices if choice["index"] == index]


def finishes(answer: httpx.Response) -> dict[int, str]:
    chunks = [data_of(event) for event in events_of(answer.text) if event != "data: [DONE]"]
    ends = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert len({end["index"] for end in ends}) == len(ends)
    return {end["index"]: end["finish_reason"] for end in ends}


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_a_call_is_told_as_a_call_however_its_text_came(size: int) -> None:
    text = "Well." + CALL
    async with running(calling(*(text[i : i + size] for i in range(0, len(text), size)))) as api:
        whole = (await api.chat(tools=TOOLS)).json()["choices"][0]
        streamed = await api.chat(tools=TOOLS, stream=True)
    ids = [f"call_{job.id.removeprefix('job_')}_0" for job in api.service.submitted]
    function = {"name": "weather", "arguments": '{"city": "Bonn"}'}
    assert whole["finish_reason"] == "tool_calls" and whole["message"]["content"] == "Well."
    assert whole["message"]["tool_calls"] == [{"id": ids[0], "type": "function", "function": function}]
    told = deltas(streamed)
    calls = [call for delta in told for call in delta.get("tool_calls", ())]
    assert calls[0] == {"index": 0, "id": ids[1], "type": "function", "function": {"name": "weather", "arguments": ""}}
    assert all(set(call) == {"index", "function"} and set(call["function"]) == {"arguments"} for call in calls[1:])
    assert "".join(call["function"]["arguments"] for call in calls) == function["arguments"]
    assert "".join(delta.get("content", "") for delta in told) == "Well."
    assert finishes(streamed) == {0: "tool_calls"}


async def test_a_call_that_is_cut_ends_in_length_and_keeps_what_came() -> None:
    async with running(calling(CALL[:-20], finish=FinishReason.LENGTH)) as api:
        whole = (await api.chat(tools=TOOLS)).json()["choices"][0]
        streamed = await api.chat(tools=TOOLS, stream=True)
    assert whole["finish_reason"] == "length" and finishes(streamed) == {0: "length"}
    (call,) = whole["message"]["tool_calls"]
    assert call["function"]["arguments"] and '{"city": "Bonn"}'.startswith(call["function"]["arguments"])


BROKEN = '<tool_call>{"name": "weather", "arguments": {"city": Bonn}}</tool_call>'


async def test_a_broken_call_is_plain_text() -> None:
    async with running(calling(BROKEN[:50], BROKEN[50:])) as api:
        whole = (await api.chat(tools=TOOLS)).json()["choices"][0]
        streamed = await api.chat(tools=TOOLS, stream=True)
    assert whole["message"] == {"role": "assistant", "content": BROKEN, "refusal": None}
    assert whole["finish_reason"] == "stop" and finishes(streamed) == {0: "stop"}
    assert "".join(delta.get("content", "") for delta in deltas(streamed)) == BROKEN


@pytest.mark.parametrize(
    ("syntax", "fields"),
    [
        ("hermes", {}),
        ("hermes", {"tools": TOOLS, "tool_choice": "none"}),
        ("", {"tools": TOOLS}),
        ("x", {"tools": TOOLS}),
    ],
)
async def test_without_tools_or_a_known_syntax_text_stays_text(syntax: str, fields: dict[str, Any]) -> None:
    async with running(FakeService(plays(opened(syntax), TextDelta(CALL, 1), done(1)))) as api:
        choice = (await api.chat(**fields)).json()["choices"][0]
    assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"


def scored(index: int, piece: bytes, logprob: float) -> Token:
    return Token(index, index, piece, Score(logprob, (Alternative(9, b"other", -0.5), Alternative(8, b"\xc3", -1.0))))


EURO = "€".encode()
SCORED = (
    TextDelta("", 1, (scored(0, EURO[:1], -0.25),)),
    TextDelta("€", 1, (scored(1, EURO[1:], float("-inf")),)),
    TextDelta("x", 1, (scored(2, b"x", -2.0),)),
)


async def test_probabilities_in_the_shape_of_chat() -> None:
    async with running(FakeService(plays(*SCORED, done(3)))) as api:
        whole = (await api.chat(logprobs=True, top_logprobs=2)).json()["choices"][0]
        streamed = await api.chat(logprobs=True, top_logprobs=2, stream=True)
    assert whole["logprobs"]["refusal"] is None
    first, second, third = whole["logprobs"]["content"]
    assert (first["token"], first["bytes"], first["logprob"]) == ("�", [0xE2], -0.25)
    assert (second["bytes"], second["logprob"]) == ([0x82, 0xAC], -9999.0)
    assert third["top_logprobs"] == [
        {"token": "other", "bytes": list(b"other"), "logprob": -0.5},
        {"token": "�", "bytes": [0xC3], "logprob": -1.0},
    ]
    chunks = [data_of(event)["choices"][0] for event in events_of(streamed.text)[1:-2]]
    assert [c for chunk in chunks for c in chunk["logprobs"]["content"]] == [first, second, third]
    assert "".join(chunk["delta"]["content"] for chunk in chunks) == "€x"


async def test_probabilities_beside_calls_are_all_told() -> None:
    events = [TextDelta(text, 1, (scored(i, text.encode(), -0.1),)) for i, text in enumerate((CALL[:20], CALL[20:]))]
    async with running(FakeService(plays(opened("hermes"), *events, done(2)))) as api:
        whole = (await api.chat(tools=TOOLS, logprobs=True)).json()["choices"][0]
        streamed = await api.chat(tools=TOOLS, logprobs=True, stream=True)
    assert [entry["token"] for entry in whole["logprobs"]["content"]] == [CALL[:20], CALL[20:]]
    told = [data_of(event)["choices"][0]["logprobs"] for event in events_of(streamed.text)[:-1]]
    assert [t["token"] for logprobs in told if logprobs for t in logprobs["content"]] == [CALL[:20], CALL[20:]]


async def test_probabilities_in_the_shape_of_completions() -> None:
    body = {"model": "m", "prompt": "x", "logprobs": 2}
    async with running(FakeService(plays(*SCORED, done(3)))) as api:
        whole = (await api.http.post("/v1/completions", json=body)).json()["choices"][0]
        streamed = await api.http.post("/v1/completions", json={**body, "stream": True})
        bare = (await api.http.post("/v1/completions", json={**body, "logprobs": 0})).json()["choices"][0]
    logprobs = whole["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xe2", "bytes:\\x82\\xac", "x"]
    assert logprobs["token_logprobs"] == [-0.25, -9999.0, -2.0]
    assert logprobs["text_offset"] == [0, 0, 1]
    assert logprobs["top_logprobs"][2] == {"other": -0.5, "bytes:\\xc3": -1.0, "x": -2.0}
    assert bare["logprobs"]["top_logprobs"] is None
    chunks = [data_of(event)["choices"][0] for event in events_of(streamed.text)[:-2]]
    joined = {key: [item for chunk in chunks for item in chunk["logprobs"][key]] for key in logprobs}
    assert joined == logprobs


async def by_seed(job: Job) -> AsyncIterator[AnswerEvent]:
    """Says its prompt and its seed, in turns with the others."""
    assert job.generation is not None
    prompt, seed = job.generation.prompt, job.generation.sampling.seed
    for text in (f"{prompt.text or prompt.tokens or 'chat'}", f" {seed}"):
        await trio.lowlevel.checkpoint()
        yield TextDelta(text, 1)
    yield done(2, cached=seed)


async def test_several_answers_to_one_chat() -> None:
    async with running(FakeService(by_seed)) as api:
        whole = await api.chat(n=3, seed=4)
        streamed = await api.chat(n=3, seed=4, stream=True, stream_options={"include_usage": True})
    body = whole.json()
    assert [(c["index"], c["message"]["content"]) for c in body["choices"]] == [
        (0, "chat 4"),
        (1, "chat 5"),
        (2, "chat 6"),
    ]
    usage = {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}
    assert body["usage"] == {**usage, "prompt_tokens_details": {"cached_tokens": 4}}
    ids = sorted(job.id for job in api.service.submitted)  # the jobs of one request start in any order
    assert whole.headers["X-Mesh-Job"] == ", ".join(ids[:3]) and streamed.headers["X-Mesh-Job"] == ", ".join(ids[3:])
    assert [told["job"] for told in body["mesh"]["jobs"]] == ids[:3]
    for index in range(3):
        first, *rest = deltas(streamed, index)
        assert first == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in rest) == f"chat {4 + index}"
    last = data_of(events_of(streamed.text)[-2])
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 13
    assert streamed.text.count("[DONE]") == 1


async def test_completions_of_several_prompts() -> None:
    body = {"model": "m", "prompt": ["a", "b"], "n": 2, "seed": 1, "echo": True}
    async with running(FakeService(by_seed)) as api:
        whole = (await api.http.post("/v1/completions", json=body)).json()
        streamed = await api.http.post("/v1/completions", json={**body, "stream": True})
        tokens = (await api.http.post("/v1/completions", json={**body, "prompt": [[1, 2], [3]], "echo": False})).json()
    expected = ["aa 1", "aa 2", "bb 1", "bb 2"]
    assert [(c["index"], c["text"]) for c in whole["choices"]] == list(enumerate(expected))
    assert (whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"]) == (14, 8)
    assert whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    texts = dict.fromkeys(range(4), "")
    for event in events_of(streamed.text)[:-1]:
        (choice,) = data_of(event)["choices"]
        texts[choice["index"]] += choice["text"]
    assert list(texts.values()) == expected and len(finishes_of_texts(streamed)) == 4
    assert [c["text"] for c in tokens["choices"]] == ["(1, 2) 1", "(1, 2) 2", "(3,) 1", "(3,) 2"]


def finishes_of_texts(answer: httpx.Response) -> list[int]:
    choices = [data_of(event)["choices"][0] for event in events_of(answer.text)[:-1]]
    return [choice["index"] for choice in choices if choice["finish_reason"]]


async def test_an_echo_of_an_answer_without_text() -> None:
    body = {"model": "m", "prompt": "a", "echo": True}
    async with running(FakeService(says())) as api:
        whole = (await api.http.post("/v1/completions", json=body)).json()
        streamed = await api.http.post("/v1/completions", json={**body, "stream": True})
    assert whole["choices"][0]["text"] == "a"
    assert [data_of(event)["choices"][0]["text"] for event in events_of(streamed.text)[:-1]] == ["a", ""]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [(NoWorker("nobody"), 503, "mesh_no_worker"), (ValueError("bug"), 500, "internal_error")],
)
async def test_one_of_several_answers_that_fails_ends_them_all(
    failure: Exception, status: int, code: str, stream: bool
) -> None:
    async def script(job: Job) -> AsyncIterator[AnswerEvent]:
        assert job.generation is not None
        if job.generation.sampling.seed == 2:
            await until(lambda: service.running == 3, 5, "all jobs")
            raise failure
        await trio.sleep_forever()
        yield done(0)

    service = FakeService(script)
    async with running(service) as api:
        answer = await api.chat(n=3, seed=0, stream=stream)
        assert service.running == 0
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_client_that_leaves_ends_all_its_answers() -> None:
    body = json.dumps({**HELLO, "n": 3, "stream": True}).encode()
    async with running(FakeService(says_then_hangs("a"))) as api, await api.connect() as stream:
        await stream.send_all(api.request(body))
        await read_until(stream, b'"a"')
        await until(lambda: api.service.running == 3, 5, "all jobs")
        await stream.aclose()
        await until(lambda: api.service.running == 0, 5, "the jobs' cancellation")


async def test_a_model_that_loads_is_a_comment_in_a_stream_only() -> None:
    async with running(FakeService(plays(Loading("blue fox", 0.5), TextDelta("a", 1), done(1)))) as api:
        streamed = await api.chat(stream=True)
        whole = await api.chat()
    assert events_of(streamed.text)[0] == ": mesh loading worker=blue%20fox percent=50"
    assert whole.json()["choices"][0]["message"]["content"] == "a"


EMBED = {"model": "m", "input": ["a", "b", "c"]}


async def test_vectors_as_numbers_and_in_base64() -> None:
    async with running(FakeService(works())) as api:
        numbers = (await api.http.post("/v1/embeddings", json={**EMBED, "dimensions": 2})).json()
        coded = (await api.http.post("/v1/embeddings", json={**EMBED, "encoding_format": "base64"})).json()
    assert [(d["index"], d["embedding"]) for d in numbers["data"]] == [(i, [i, 3.0]) for i in range(3)]
    assert [base64.b64decode(d["embedding"]) for d in coded["data"]] == [struct.pack("<2f", i, 3) for i in range(3)]
    assert numbers["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    (job, _) = api.service.submitted
    assert job.kind is TaskKind.EMBED and job.embedding is not None
    assert [prompt.text for prompt in job.embedding.inputs] == ["a", "b", "c"]


async def test_dimensions_that_the_model_does_not_have_are_refused() -> None:
    async with running(FakeService(works())) as api:
        answer = await api.http.post("/v1/embeddings", json={**EMBED, "dimensions": 3})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "dimensions"
    assert "2" in answer.json()["error"]["message"]


NAN = struct.pack("<2f", float("nan"), 1)
ONE = struct.pack("<2f", 0, 1)


@pytest.mark.parametrize(
    "pieces", [[ONE], [ONE] * 2, [ONE] * 4, [ONE, ONE, ONE[:4]], [b"abc"] * 3, [b""] * 3, [ONE, NAN, ONE], []]
)
async def test_vectors_that_cannot_be_are_no_answer(pieces: list[bytes]) -> None:
    items = tuple(Token(i, 0, piece) for i, piece in enumerate(pieces))
    async with running(FakeService(plays(ItemsDelta(items), done(0)))) as api:
        answer = await api.http.post("/v1/embeddings", json=EMBED)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_failed")


async def test_many_vectors_come_in_the_order_of_their_inputs() -> None:
    items = [Token(i, 0, struct.pack("<64f", *range(i, i + 64))) for i in range(600)]
    parts = [ItemsDelta(tuple(items[300:])), ItemsDelta(tuple(items[:300]))]
    async with running(FakeService(plays(*parts, done(0)))) as api:
        answer = (await api.http.post("/v1/embeddings", json={**EMBED, "input": ["x"] * 600})).json()
    assert [d["embedding"][0] for d in answer["data"]] == list(range(600))


async def test_tokens_there_and_back() -> None:
    async with running(FakeService(works())) as api:
        asked = {"model": "m", "text": "one two", "special": True, "pieces": True}
        there = (await api.http.post("/mesh/v1/tokenize", json=asked)).json()
        empty = (await api.http.post("/mesh/v1/tokenize", json={"model": "m", "text": ""})).json()
        api.service.script = plays(ItemsDelta((Token(0, 5, EURO[:1]), Token(1, 6, EURO[1:]))), done(0))
        back = (await api.http.post("/mesh/v1/detokenize", json={"model": "m", "tokens": [5, 6]})).json()
        split = (await api.http.post("/mesh/v1/tokenize", json={**asked, "text": "€"})).json()
    assert there["pieces"] == ["one", "two"] and there["count"] == len(there["tokens"]) == 2
    assert (empty["tokens"], empty["count"], "pieces" in empty) == ([], 0, False)
    assert back["text"] == "€" and split["pieces"] == [[0xE2], [0x82, 0xAC]] and split["tokens"] == [5, 6]
    works_done = [job.tokenization for job in api.service.submitted]
    assert works_done[0] is not None and works_done[0].special and works_done[0].prompt.text == "one two"
    assert works_done[2] is not None and works_done[2].prompt.tokens == (5, 6)


async def test_tokens_of_a_chat() -> None:
    async with running(FakeService(works())) as api:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        assert (await api.http.post("/mesh/v1/tokenize", json=body)).status_code == 200
    (job,) = api.service.submitted
    assert job.tokenization is not None and job.tokenization.prompt.messages[0].content == "hi"


async def test_a_model_says_where_it_is_and_what_it_can() -> None:
    async with running(FakeService()) as api:
        (model,) = (await api.http.get("/v1/models")).json()["data"]
        one = (await api.http.get("/v1/models/org/tiny")).json()
    assert model == one and (one["id"], one["object"]) == ("org/tiny", "model")
    assert one["mesh"] == {
        "digest": "ab" * 32,
        "context_tokens": 2048,
        "nodes": [NODE],
        "ready": [NODE],
        "local": True,
        "abilities": ["generate", "embed"],
    }


async def test_a_response_that_fails_in_mid_stream_says_so_last() -> None:
    async with running(FakeService(plays(TextDelta("a", 1), NoWorker("nobody", hint="h")))) as api:
        streamed = await api.http.post("/v1/responses", json={"model": "m", "input": "x", "stream": True})
        early = await api.http.post("/v1/responses", json={"model": "m", "input": [], "stream": True})
    last = events_of(streamed.text)[-1]
    name, _, data = last.partition("\n")
    response = json.loads(data.removeprefix("data: "))["response"]
    assert name == "event: response.failed" and response["status"] == "failed"
    assert response["error"]["mesh"] == {"code": "mesh_no_worker", "hint": "h"}
    assert response["output"][0]["content"][0]["text"] == "a"
    assert early.status_code == 400 and early.json()["error"]["param"] == "input"
