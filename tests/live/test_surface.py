"""The whole HTTP surface over a real daemon and a real engine, asked by the unmodified client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from meshd.testing.cluster import Cluster, Node
from tests.live.asking import PATIENCE_S, TINY
from tests.live.conftest import SETTINGS

pytestmark = pytest.mark.live

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Node]:
    """One machine with one model."""
    with Cluster(tmp_path_factory.mktemp("surface"), SETTINGS) as cluster:
        node = cluster.found("solo")
        cluster.add_model(node, tiny, TINY)
        yield node


@pytest.fixture
def client(node: Node) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.api_url}/v1", api_key=node.token, timeout=PATIENCE_S, max_retries=0) as client:
        yield client


def test_several_answers_differ_and_come_again(client: openai.OpenAI) -> None:
    def texts() -> list[str | None]:
        answer = client.chat.completions.create(
            model=TINY, messages=HI, n=3, seed=7, max_completion_tokens=8, extra_body={"mesh": {"exact": True}}
        )
        assert answer.usage is not None and answer.usage.completion_tokens == 24
        return [choice.message.content for choice in answer.choices]

    first = texts()
    assert len(set(first)) == 3 and texts() == first


def test_several_streamed_answers(client: openai.OpenAI) -> None:
    told = ["", "", ""]
    ends = {}
    for chunk in client.chat.completions.create(model=TINY, messages=HI, n=3, max_tokens=6, stream=True):
        for choice in chunk.choices:
            told[choice.index] += choice.delta.content or ""
            ends.update({choice.index: choice.finish_reason} if choice.finish_reason else {})
    assert ends == dict.fromkeys(range(3), "length") and all(told)


def test_prompts_in_lists_and_an_echo(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=TINY, prompt=["one", "two"], max_tokens=4, temperature=0, echo=True)
    assert [choice.text[:3] for choice in answer.choices] == ["one", "two"]
    alone = client.completions.create(model=TINY, prompt="two", max_tokens=4, temperature=0)
    assert answer.choices[1].text == "two" + alone.choices[0].text
    assert answer.usage is not None and answer.usage.completion_tokens == 8


def test_a_response_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=TINY, input="hi", instructions="short", max_output_tokens=5, temperature=0)
    assert whole.status == "incomplete" and whole.usage is not None and whole.usage.output_tokens == 5
    with client.responses.stream(model=TINY, input="hi", instructions="short", max_output_tokens=5, temperature=0) as s:
        deltas = [event.delta for event in s if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text


def test_models_and_the_document(client: openai.OpenAI, node: Node) -> None:
    (model,) = client.models.list()
    assert model.id == TINY and client.models.retrieve(TINY) == model
    assert model.model_dump()["mesh"]["abilities"]
    assert node.http.get("/openapi.json").json()["openapi"] == "3.1.0"
