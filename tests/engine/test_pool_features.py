"""What the engine can do, through its process: every kind of work arrives, and comes back, as it went in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import trio

from meshd.core.ad import ABILITIES_OF_A_FILE, Ability
from meshd.core.chat import Message, Tool, ToolChoice, ToolMode
from meshd.core.engine import ModelFile
from meshd.core.errors import BadInput, ContextOverflow
from meshd.core.generation import Bias, FinishReason, Format, FormatKind, Generation, Prompt, Sampling
from meshd.core.job import Embedding, Tokenization, Work
from meshd.engine.config import PoolConfig
from meshd.engine.pool import EnginePool, open_pool
from tests.engine.asking import ONE, Answer, answer, ask, loaded
from tests.engine.conftest import model_file
from tests.engine.tiny import BERT_CONTEXT_TOKENS, WIDTH, write_tiny, write_tiny_bert

pytestmark = pytest.mark.live
CONFIG = PoolConfig(slots=2, context_tokens=512, nice=0)
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "yes": {"type": "boolean"}},
    "required": ["n", "yes"],
    "additionalProperties": False,
}
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|done|>{% endfor %}{{ tools }}{# <tool_call> #}"
WARM = Sampling(temperature=1.5, seed=2)


def form(schema: object) -> Format:
    return Format(FormatKind.JSON_SCHEMA, json.dumps(schema))


async def work(pool: EnginePool, model: ModelFile, asked: Work, cut: int = 0) -> Answer:
    """The whole of some work that is no generation."""
    whole = Answer()
    async with pool.generate(model.digest, asked) as events:
        async for event in events:
            whole.take(event)
    assert whole.reason is FinishReason.STOP and whole.started is not None
    return whole


async def test_every_kind_of_work_passes_through_the_process(tmp_path: Path) -> None:
    model = model_file(write_tiny(tmp_path / "tiny.gguf", template=TEMPLATE))
    async with open_pool(CONFIG) as pool:
        assert (await loaded(pool, model)).abilities == ABILITIES_OF_A_FILE
        await check_scores(pool, model)
        await check_forms(pool, model)
        await check_tools(pool, model)
        await check_tokens(pool, model)
        await check_vectors(pool, model)
        assert pool.slots_free(model.digest) == 2


async def check_scores(pool: EnginePool, model: ModelFile) -> None:
    scored = await answer(pool, model, replace(ask(exact=True), sampling=WARM, top_logprobs=3))
    assert all(t.score is not None and len(t.score.top) == 3 and t.score.logprob < 0 for t in scored.tokens)
    resumed = await answer(pool, model, replace(ask(exact=True), sampling=WARM, top_logprobs=3), scored.tokens[:17])
    assert resumed.tokens == scored.tokens[17:]
    assert all(t.score is None for t in (await answer(pool, model, ask(max_tokens=3))).tokens)
    forced = replace(ask(max_tokens=3), sampling=Sampling(biases=(Bias(70, 100.0),)))
    assert (await answer(pool, model, forced)).ids == [70] * 3
    with pytest.raises(BadInput) as caught:
        await answer(pool, model, replace(ask(), sampling=Sampling(biases=(Bias(10**6, 1.0),))))
    assert caught.value.param == "logit_bias"


async def check_forms(pool: EnginePool, model: ModelFile) -> None:
    request = replace(ask(max_tokens=None, exact=True), sampling=WARM, format=form(SCHEMA))
    whole = await answer(pool, model, request)
    assert whole.reason is FinishReason.STOP
    jsonschema.validate(json.loads(b"".join(t.piece for t in whole.tokens)), SCHEMA)
    assert (await answer(pool, model, request, whole.tokens[:5])).tokens == whole.tokens[5:]
    with pytest.raises(BadInput, match="strange") as caught:
        await answer(pool, model, replace(request, format=form({"type": "strange"})))
    assert caught.value.param == "response_format"
    # A generation that is left while its grammar is being compiled leaves nothing behind.
    with trio.move_on_after(0):
        await answer(pool, model, replace(request, format=form({"enum": list(range(3000))})))
    assert (await answer(pool, model, ask(max_tokens=3))).reason is FinishReason.LENGTH


async def check_tools(pool: EnginePool, model: ModelFile) -> None:
    chat = Prompt(messages=(Message("user", "hi"),))
    tools = (Tool("look", "", json.dumps(SCHEMA)),)
    request = Generation(chat, WARM, 200, tools=tools, tool_choice=ToolChoice(ToolMode.REQUIRED, parallel=False))
    called = await answer(pool, model, request)
    assert called.started is not None and called.started.opening.tool_syntax == "hermes"
    text = b"".join(t.piece for t in called.tokens).decode()
    call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    jsonschema.validate(call["arguments"], SCHEMA)


async def check_tokens(pool: EnginePool, model: ModelFile) -> None:
    tokens = await work(pool, model, Tokenization(Prompt("wörld <|user|>" * 100), special=True))
    assert b"".join(t.piece for t in tokens.tokens).decode() == "<s>" + "wörld <|user|>" * 100
    back = await work(pool, model, Tokenization(Prompt(tokens=tuple(tokens.ids))))
    assert back.tokens == tokens.tokens


async def check_vectors(pool: EnginePool, model: ModelFile) -> None:
    inputs = Embedding(tuple(Prompt(f"text {i}") for i in range(20)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, pool, model, ask(max_tokens=100))
        found = await work(pool, model, inputs)
    vectors = np.stack([np.frombuffer(t.piece, dtype="<f4") for t in found.tokens])
    assert vectors.shape == (20, WIDTH) and np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    rest = await answer(pool, model, inputs, found.tokens[:13])  # type: ignore[arg-type]
    assert [t.index for t in rest.tokens] == list(range(13, 20))


async def test_a_model_that_only_embeds(tmp_path: Path) -> None:
    model = model_file(write_tiny_bert(tmp_path / "bert.gguf"))
    async with open_pool(CONFIG) as pool:
        facts = await loaded(pool, model)
        assert facts.abilities == (Ability.EMBED, Ability.TOKENIZE)
        assert (facts.context_tokens, facts.generation_tokens_per_s) == (BERT_CONTEXT_TOKENS, 0.0)
        found = await work(pool, model, Embedding((Prompt("a b c"), Prompt("z"))))
        assert [len(t.piece) for t in found.tokens] == [4 * WIDTH] * 2
        assert found.started is not None and found.started.opening.prompt_tokens == 5 + 3
        with pytest.raises(BadInput, match="generate"):
            await answer(pool, model, ask())
        with pytest.raises(ContextOverflow):
            await work(pool, model, Embedding((Prompt("a " * BERT_CONTEXT_TOKENS),)))


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}


async def test_a_real_model_writes_what_the_schema_says(gemma: ModelFile) -> None:
    prompt = Prompt("A description of a person named Anna, aged 31, in JSON with name, age and likes: ")
    request = Generation(prompt, Sampling(temperature=0), 120, format=form(PERSON), top_logprobs=2)
    async with open_pool(PoolConfig(slots=1, context_tokens=512, nice=0)) as pool:
        await loaded(pool, gemma, ONE)
        whole = await answer(pool, gemma, request)
        cut = len(whole.tokens) // 2
        rest = await answer(pool, gemma, request, whole.tokens[:cut])
    for tokens, reason in ((whole.tokens, whole.reason), ([*whole.tokens[:cut], *rest.tokens], rest.reason)):
        text = b"".join(token.piece for token in tokens).decode()
        # Lengths are bounded, so the schema is fulfilled long before the limit.
        assert reason is FinishReason.STOP, text
        jsonschema.validate(json.loads(text), PERSON)
    assert all(t.score is not None and t.score.top[0].logprob <= 0 for t in whole.tokens)
