"""The unmodified `openai` client against the real server."""

from __future__ import annotations

import openai
import pytest

from meshd.core.chat import Message
from meshd.core.classes import DataClass, Region
from meshd.core.errors import ContextOverflow, NoWorker, Overloaded, UnknownModel
from meshd.core.generation import FinishReason
from meshd.node.views import Rerouted, TextDelta
from tests.api.fake_service import RECEIPT, FakeService, done, plays, says
from tests.api.running import running

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
