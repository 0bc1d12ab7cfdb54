"""The whole HTTP surface over a real daemon and a real engine, asked by the unmodified client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from meshd.testing.cluster import Cluster, Node
from tests.engine.tiny import write_tiny
from tests.live.asking import PATIENCE_S, TINY
from tests.live.conftest import SETTINGS

pytestmark = pytest.mark.live

CALLER = "caller"
CALLING = (
    "{{ bos_token }}{% if tools %}<|system|>"
    "{% for t in tools %}{{ t.function.name }}{% endfor %} <tool_call>{% endif %}"
    "{% for m in messages %}<|{{ m.role if m.role != 'tool' else 'user' }}|>{{ m.content }}{% endfor %}<|assistant|>"
)
OK = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": OK}} for name in ("allow", "deny")]
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Node]:
    """One machine with one model."""
    cluster_root = tmp_path_factory.mktemp("surface")
    with Cluster(cluster_root, SETTINGS) as cluster:
        node = cluster.found("solo")
        cluster.add_model(node, tiny, TINY)
        cluster.add_model(node, write_tiny(cluster_root / "caller.gguf", template=CALLING), CALLER)
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
    (model,) = [model for model in client.models.list() if model.id == TINY]
    assert client.models.retrieve(TINY) == model
    assert model.model_dump()["mesh"]["abilities"]
    assert node.http.get("/openapi.json").json()["openapi"] == "3.1.0"


def test_probabilities_are_of_the_tokens_that_were_said(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=TINY, messages=HI, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 6
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)  # greedy: the best one was drawn
    legacy = client.completions.create(model=TINY, prompt="x", max_tokens=3, logprobs=2)
    told = legacy.choices[0].logprobs
    assert told is not None and told.token_logprobs is not None and len(told.token_logprobs) == 3


def test_a_bias_forces_and_forbids(client: openai.OpenAI, node: Node) -> None:
    (token,) = node.post("/mesh/v1/tokenize", {"model": TINY, "text": "Q"})["tokens"]
    forced = client.completions.create(model=TINY, prompt="x", max_tokens=4, logit_bias={str(token): 100})
    assert forced.choices[0].text == "QQQQ"


def test_an_answer_has_the_form_that_was_asked_for(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    answer = client.chat.completions.create(model=TINY, messages=HI, max_tokens=60, response_format=form)  # type: ignore[call-overload]
    assert isinstance(json.loads(answer.choices[0].message.content)["ok"], bool)


def test_vectors_and_tokens(client: openai.OpenAI, node: Node) -> None:
    listed = client.embeddings.create(model=TINY, input=["one", "two"])
    alone = client.embeddings.create(model=TINY, input="two", encoding_format="float")
    assert [vector.index for vector in listed.data] == [0, 1] and listed.usage.prompt_tokens > 0
    assert listed.data[1].embedding == pytest.approx(alone.data[0].embedding, abs=1e-3)
    tokens = node.post("/mesh/v1/tokenize", {"model": TINY, "text": "a b€", "pieces": True})
    assert len(tokens["tokens"]) == tokens["count"] == len(tokens["pieces"])
    assert node.post("/mesh/v1/detokenize", {"model": TINY, "tokens": tokens["tokens"]})["text"] == "a b€"
    by_id = client.completions.create(model=TINY, prompt=tokens["tokens"], max_tokens=3)
    assert by_id.usage is not None and by_id.usage.prompt_tokens == tokens["count"]


def test_a_tool_is_called_whole_and_streamed(client: openai.OpenAI) -> None:
    asked = {"model": CALLER, "messages": HI, "tools": TOOLS, "temperature": 0, "max_tokens": 200}
    named = {"type": "function", "function": {"name": "deny"}}
    answer = client.chat.completions.create(**asked, tool_choice=named, parallel_tool_calls=False)  # type: ignore[call-overload]
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.function.name) == ("tool_calls", None, "deny")
    assert isinstance(json.loads(call.function.arguments)["ok"], bool)
    with client.chat.completions.stream(**asked, tool_choice=named, parallel_tool_calls=False) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls[0].function.arguments == call.function.arguments
    history = [*HI, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    again = client.chat.completions.create(**{**asked, "messages": history, "max_tokens": 5}, tool_choice="none")
    assert again.choices[0].message.content and not again.choices[0].message.tool_calls
