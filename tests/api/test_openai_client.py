"""The unmodified `openai` client against the real server."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from meshd.core.chat import Message
from meshd.core.classes import DataClass, Region
from meshd.core.errors import ContextOverflow, NoWorker, Overloaded, UnknownModel
from meshd.core.generation import FinishReason
from meshd.node.views import Rerouted, TextDelta
from tests.api.fake_service import RECEIPT, FakeService, done, opened, plays, says, works
from tests.api.running import data_of, events_of, running

HI = [{"role": "user", "content": "hi"}]


async def test_chat_whole() -> None:
    async with running(FakeService()) as api:
        answer = await api.openai(lambda c: c.chat.completions.create(model="tiny", messages=HI))
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 2, 9)
    assert answer.mesh == {"job": api.service.submitted[0].id, "receipt": RECEIPT, "attempts": 1}


async def test_chat_streamed() -> None:
    nasty = ["\u2028 a\n\n", 'data: "x"\r', "\U0001f600", "\\u0000"]
    async with running(FakeService(says(*nasty))) as api:
        chunks = await api.openai(
            lambda c: list(
                c.chat.completions.create(
                    model="tiny", messages=HI, stream=True, stream_options={"include_usage": True}
                )
            )
        )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.content for c in chunks[1:-2]] == nasty
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * 5 + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 11
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].mesh["receipt"] == chunks[-2].mesh["receipt"] == RECEIPT
    assert len({c.id for c in chunks}) == 1


async def test_completions_whole_and_streamed() -> None:
    async with running(FakeService(plays(TextDelta("ab", 2), done(2, FinishReason.LENGTH)))) as api:
        whole = await api.openai(lambda c: c.completions.create(model="tiny", prompt="x"))
        chunks = await api.openai(lambda c: list(c.completions.create(model="tiny", prompt="x", stream=True)))
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("ab", "length")
    assert "".join(c.choices[0].text for c in chunks) == "ab"
    assert [c.choices[0].finish_reason for c in chunks] == [None, "length"]
    assert chunks[-1].mesh["job"] == api.service.submitted[1].id
    generation = api.service.submitted[0].generation
    assert generation is not None and generation.max_tokens == 16 and generation.prompt.text == "x"


async def test_every_option_reaches_the_job() -> None:
    async with running(FakeService()) as api:
        await api.openai(
            lambda c: c.chat.completions.create(
                model="tiny",
                messages=[
                    {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
                ],
                temperature=0,
                top_p=0.5,
                seed=11,
                stop=["x", "y"],
                max_completion_tokens=5,
                presence_penalty=0.5,
                frequency_penalty=-0.5,
                n=1,
                user="me",
                extra_body={
                    "top_k": 7,
                    "min_p": 0.1,
                    "mesh": {"class": "confidential", "regions": ["eu", "us/va"], "exact": True},
                },
            )
        )
    (job,) = api.service.submitted
    generation = job.generation
    assert generation is not None
    sampling = generation.sampling
    assert generation.prompt.messages == (Message("system", "ab"),)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (0, 0.5, 7, 0.1, 11)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert (generation.max_tokens, generation.stop, generation.exact) == (5, ("x", "y"), True)
    assert job.constraints.data_class is DataClass.CONFIDENTIAL
    assert job.constraints.regions == (Region("eu"), Region("us/va"))


async def test_a_seed_is_drawn_when_none_was_named() -> None:
    async with running(FakeService()) as api:
        await api.openai(lambda c: c.chat.completions.create(model="tiny", messages=HI))
        await api.openai(lambda c: c.chat.completions.create(model="tiny", messages=HI, seed=0))
    assert [j.generation and j.generation.sampling.seed for j in api.service.submitted] == [4242, 0]


async def test_models() -> None:
    async with running(FakeService()) as api:
        listed = await api.openai(lambda c: list(c.models.list()))
        one = await api.openai(lambda c: c.models.retrieve("org/tiny"))
        with pytest.raises(openai.NotFoundError) as caught:
            await api.openai(lambda c: c.models.retrieve("other"))
    assert [m.id for m in listed] == ["org/tiny"] and one.id == "org/tiny"
    assert caught.value.code == "model_not_found"


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'


async def test_tools_whole_and_streamed() -> None:
    texts = (CALL[:20], CALL[20:50], CALL[50:], "\n" + CALL)
    script = plays(opened("hermes"), *(TextDelta(t, 1) for t in texts), done(4))
    async with running(FakeService(script)) as api:
        whole = await api.openai(lambda c: c.chat.completions.create(model="tiny", messages=HI, tools=TOOLS))

        def stream(client: openai.OpenAI) -> Any:
            with client.chat.completions.stream(model="tiny", messages=HI, tools=TOOLS) as events:
                names = [e.name for e in events if e.type == "tool_calls.function.arguments.done"]
                return names, events.get_final_completion()

        names, final = await api.openai(stream)
    assert names == ["weather", "weather"]
    for answer in (whole, final):
        assert answer.choices[0].finish_reason == "tool_calls" and not answer.choices[0].message.content
        calls = answer.choices[0].message.tool_calls
        assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Bonn"}] * 2
        assert len({call.id for call in calls}) == 2 and all(call.id.startswith("call_") for call in calls)
    again = {"role": "tool", "tool_call_id": whole.choices[0].message.tool_calls[0].id, "content": "rain"}
    history = [*HI, whole.choices[0].message, again]
    async with running(FakeService()) as api:
        await api.openai(lambda c: c.chat.completions.create(model="tiny", messages=history, tools=TOOLS))
    (job,) = api.service.submitted
    assert job.generation is not None
    assert job.generation.prompt.messages[2] == Message("tool", "rain", (), again["tool_call_id"], "weather")


async def test_a_format_is_parsed() -> None:
    class Person(pydantic.BaseModel):
        name: str

    async with running(FakeService(says('{"name": ', '"Ada"}'))) as api:
        answer = await api.openai(lambda c: c.chat.completions.parse(model="tiny", messages=HI, response_format=Person))
    assert answer.choices[0].message.parsed == Person(name="Ada")
    (job,) = api.service.submitted
    assert job.generation is not None and json.loads(job.generation.format.schema)["required"] == ["name"]


async def test_probabilities() -> None:
    async with running(FakeService(works(3))) as api:
        whole = await api.openai(
            lambda c: c.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=2)
        )
        chunks = await api.openai(
            lambda c: list(c.chat.completions.create(model="tiny", messages=HI, logprobs=True, stream=True))
        )
        legacy = await api.openai(lambda c: c.completions.create(model="tiny", prompt="x", logprobs=2))
    told = whole.choices[0].logprobs.content
    assert "".join(entry.token for entry in told) == whole.choices[0].message.content
    assert all(bytes(entry.bytes).decode() == entry.token and len(entry.top_logprobs) == 2 for entry in told)
    streamed = [chunk.choices[0].logprobs for chunk in chunks]
    assert sum(len(logprobs.content) for logprobs in streamed if logprobs) == 3
    assert "".join(legacy.choices[0].logprobs.tokens) == legacy.choices[0].text
    assert all(len(top) == 3 for top in legacy.choices[0].logprobs.top_logprobs)


async def test_several_answers() -> None:
    async with running(FakeService(works(2))) as api:
        whole = await api.openai(lambda c: c.chat.completions.create(model="tiny", messages=HI, n=3, seed=1))
        chunks = await api.openai(
            lambda c: list(c.chat.completions.create(model="tiny", messages=HI, n=3, seed=1, stream=True))
        )
        lists = await api.openai(lambda c: c.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=1))
        tokens = await api.openai(lambda c: c.completions.create(model="tiny", prompt=[1, 2]))
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3
    told = ["".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == i) for i in range(3)]
    assert told == texts
    assert [choice.index for choice in lists.choices] == [0, 1, 2, 3] and lists.usage.completion_tokens == 4
    assert tokens.choices[0].text


async def test_embeddings() -> None:
    async with running(FakeService(works())) as api:
        coded = await api.openai(lambda c: c.embeddings.create(model="tiny", input=["a", "b"]))
        plain = await api.openai(lambda c: c.embeddings.create(model="tiny", input="a", encoding_format="float"))
        await api.openai(lambda c: c.embeddings.create(model="tiny", input=[[1, 2], [3]]))
    assert [(d.index, d.embedding) for d in coded.data] == [(0, [0.0, 2.0]), (1, [1.0, 2.0])]
    assert plain.data[0].embedding == [0.0, 1.0] and plain.usage.total_tokens == 7
    last = api.service.submitted[-1].embedding
    assert last is not None and [prompt.tokens for prompt in last.inputs] == [(1, 2), (3,)]


@pytest.mark.parametrize(("finish", "status"), [(FinishReason.STOP, "completed"), (FinishReason.LENGTH, "incomplete")])
async def test_responses(finish: FinishReason, status: str) -> None:
    script = plays(TextDelta("Hel", 1), TextDelta("lo", 1), done(2, finish, cached=3))
    asked: dict[str, Any] = {"model": "tiny", "input": HI, "instructions": "be kind", "metadata": {"a": "b"}}

    def stream(client: openai.OpenAI) -> Any:
        with client.responses.stream(**asked) as events:
            seen = list(events)
            return seen, events.get_final_response() if status == "completed" else seen[-1].response

    async with running(FakeService(script)) as api:
        whole = await api.openai(lambda c: c.responses.create(**asked))
        raw = await api.openai(lambda c: list(c.responses.create(**asked, stream=True)))
        seen, final = await api.openai(stream)
    for response in (whole, final):
        assert (response.output_text, response.status) == ("Hello", status)
        assert response.usage.input_tokens_details.cached_tokens == 3 and response.usage.total_tokens == 9
        assert (response.instructions, response.metadata) == ("be kind", {"a": "b"})
        Response.model_validate(response.to_dict(exclude_unset=True))  # strictly, as the client itself does not
    assert (whole.incomplete_details is not None) == (status == "incomplete")
    assert [event.type.removeprefix("response.") for event in raw] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", status,
    ]  # fmt: skip
    assert [event.sequence_number for event in raw] == list(range(10))
    assert seen[-1].type == f"response.{status}"
    assert "".join(event.delta for event in raw if event.type == "response.output_text.delta") == "Hello"


async def test_every_kind_of_answer_is_strictly_what_the_client_declares() -> None:
    """The client builds its types without checking them; here they are checked."""
    tools = plays(opened("hermes"), TextDelta(CALL, 1), done(1))
    async with running(FakeService(works())) as api:
        for path, body, kind in (
            ("chat/completions", {"messages": HI, "logprobs": True, "top_logprobs": 1, "n": 2}, ChatCompletion),
            ("completions", {"prompt": "x", "logprobs": 1}, Completion),
            ("embeddings", {"input": "x"}, CreateEmbeddingResponse),
            ("responses", {"input": "x"}, Response),
        ):
            answer = await api.http.post(f"/v1/{path}", json={"model": "m", **body})
            kind.model_validate(answer.json())
        api.service.script = tools
        ChatCompletion.model_validate((await api.chat(tools=TOOLS)).json())
        streamed = await api.chat(tools=TOOLS, stream=True)
        for event in events_of(streamed.text)[:-1]:
            ChatCompletionChunk.model_validate(data_of(event))
        for model in (await api.http.get("/v1/models")).json()["data"]:
            Model.model_validate(model)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "raised", "code"),
    [
        (NoWorker("nobody"), openai.InternalServerError, "mesh_no_worker"),
        (Overloaded("full", retry_after_s=2.5), openai.InternalServerError, "mesh_overloaded"),
        (ContextOverflow("too long", param="messages"), openai.BadRequestError, "context_length_exceeded"),
        (UnknownModel("no such model"), openai.NotFoundError, "model_not_found"),
        (RuntimeError("bug"), openai.InternalServerError, "internal_error"),
    ],
)
async def test_a_failure_before_the_first_byte_has_its_status(
    failure: Exception, raised: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    async with running(FakeService(plays(failure))) as api:
        with pytest.raises(raised) as caught:
            await api.openai(lambda c: c.chat.completions.create(model="tiny", messages=HI, stream=stream))
        api.service.script = says("still alive")
        assert (await api.chat()).status_code == 200
    assert caught.value.code == code
    assert caught.value.response.headers.get("Retry-After") == {"mesh_no_worker": "1", "mesh_overloaded": "3"}.get(code)
    assert caught.value.response.headers["X-Mesh-Job"] == api.service.submitted[0].id
    assert "bug" not in caught.value.message


async def test_a_failure_in_mid_stream_raises_and_is_never_finished() -> None:
    script = plays(
        TextDelta("a", 1), Rerouted(2, "id", "blue fox\n", 1, "lost"), TextDelta("b", 1), NoWorker("nobody", hint="h")
    )
    seen: list[object] = []

    def use(client: openai.OpenAI) -> None:
        for chunk in client.chat.completions.create(model="tiny", messages=HI, stream=True):
            seen.append((chunk.choices[0].delta.content, chunk.choices[0].finish_reason))

    async with running(FakeService(script)) as api:
        with pytest.raises(openai.APIError) as caught:
            await api.openai(use)
    assert caught.value.code == "mesh_no_worker" and caught.value.message == "nobody"
    assert seen == [("", None), ("a", None), ("b", None)]
