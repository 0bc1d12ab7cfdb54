"""A real model: what exact promises, and that the default mode is sane."""

from __future__ import annotations

import pytest
import trio

from meshd.core.chat import Message
from meshd.core.engine import EngineLimits, ModelFile
from meshd.core.generation import Generation, Prompt
from meshd.engine.config import PoolConfig
from meshd.engine.pool import open_pool
from meshd.engine.schedule import EXACT_CHUNK_TOKENS
from tests.engine.asking import FULL, Answer, answer, ask, loaded

pytestmark = pytest.mark.live
STORY = "Once upon a time in a small village there lived"
OTHERS = ("def fibonacci(n):", "My favourite recipe for bread begins with", "The three most important facts are")


async def whole_answer(model: ModelFile, config: PoolConfig, limits: EngineLimits, request: Generation) -> Answer:
    async with open_pool(config) as pool:
        await loaded(pool, model, limits)
        return await answer(pool, model, request)


async def test_exact_resume_is_identical_at_many_cuts_on_another_worker(gemma: ModelFile) -> None:
    request = ask(STORY, max_tokens=40, exact=True)
    whole = await whole_answer(gemma, PoolConfig(slots=2, context_tokens=1024, nice=0), FULL, request)
    assert len(whole.tokens) == 40
    async with open_pool(PoolConfig(slots=3, context_tokens=2048, prefill_chunk_tokens=64, nice=0)) as pool:
        await loaded(pool, gemma, EngineLimits(threads=1))
        for cut in (1, 11, 23, 39):
            assert (await answer(pool, gemma, request, whole.tokens[:cut])).ids == whole.ids[cut:], cut


async def test_exact_beside_three_others_is_identical(gemma: ModelFile) -> None:
    request = ask(STORY, max_tokens=24, exact=True)
    async with open_pool(PoolConfig(slots=4, context_tokens=1024, nice=0)) as pool:
        await loaded(pool, gemma, FULL)
        alone = await answer(pool, gemma, request)
        async with trio.open_nursery() as nursery:
            for text in OTHERS:
                nursery.start_soon(answer, pool, gemma, ask(text, max_tokens=300))
            assert (await answer(pool, gemma, request)).ids == alone.ids
            assert (await answer(pool, gemma, request, alone.tokens[:9])).ids == alone.ids[9:]
            nursery.cancel_scope.cancel()


async def test_exact_holds_beyond_512_positions_and_with_sampling(gemma: ModelFile) -> None:
    """There llama.cpp's flash attention would divide the work by thread, and sums would differ."""
    text = " ".join(f"{number} times {number} is {number * number}." for number in range(90))
    request = ask(text, max_tokens=16, exact=True, temperature=1.0, top_p=0.95, seed=11)
    config = PoolConfig(slots=1, context_tokens=2048, nice=0)
    whole = await whole_answer(gemma, config, EngineLimits(threads=1), request)
    assert whole.started is not None and whole.started.opening.prompt_tokens > 600
    async with open_pool(PoolConfig(slots=2, context_tokens=1536, nice=0)) as pool:
        await loaded(pool, gemma, EngineLimits(threads=3))
        assert (await answer(pool, gemma, request, whole.tokens[:6])).ids == whole.ids[6:]


async def test_an_exact_prompt_that_is_cached_in_part_is_answered_as_if_it_were_not(gemma: ModelFile) -> None:
    """Kept are whole chunks of an exact prompt: the numbers that it would have computed itself."""
    text = " ".join(f"{number} plus {number} is {2 * number}." for number in range(40))
    first, second = ask(text + STORY, max_tokens=8, exact=True), ask(text + OTHERS[0], max_tokens=16, exact=True)
    config = PoolConfig(slots=2, context_tokens=1024, nice=0)
    fresh = await whole_answer(gemma, config, FULL, second)
    async with open_pool(config) as pool:
        await loaded(pool, gemma, FULL)
        before = await answer(pool, gemma, first)
        kept = await answer(pool, gemma, second)
        again = await answer(pool, gemma, first)
    assert kept.ids == fresh.ids and again.ids == before.ids
    for told in (kept, again):
        assert told.started is not None and told.started.opening.cached_tokens >= 2 * EXACT_CHUNK_TOKENS
        assert told.started.opening.cached_tokens % EXACT_CHUNK_TOKENS == 0
    assert fresh.started is not None and fresh.started.opening.cached_tokens == 0


async def test_the_next_turn_is_computed_behind_the_last_one(gemma: ModelFile) -> None:
    async with open_pool(PoolConfig(slots=2, context_tokens=1024, nice=0)) as pool:
        await loaded(pool, gemma, FULL)
        turn = await answer(pool, gemma, ask(STORY, max_tokens=30))
        longer = STORY + b"".join(token.piece for token in turn.tokens).decode() + " And then"
        following = await answer(pool, gemma, ask(longer, max_tokens=1))
    assert turn.started is not None and following.started is not None
    assert following.started.opening.cached_tokens >= turn.started.opening.prompt_tokens


async def test_chat_with_a_base_model_answers_and_stops_before_the_next_turn(gemma: ModelFile) -> None:
    request = Generation(
        Prompt(messages=(Message("user", "What is the capital of France?"),)), ask().sampling, max_tokens=60
    )
    async with open_pool(PoolConfig(slots=1, context_tokens=512, nice=0)) as pool:
        await loaded(pool, gemma, FULL)
        chat = await answer(pool, gemma, request)
    text = b"".join(token.piece for token in chat.tokens).decode()
    assert "Paris" in text
    assert "\nUser:" not in text.removesuffix("\nUser:")


async def test_pieces_join_to_text_in_any_script(gemma: ModelFile) -> None:
    async with open_pool(PoolConfig(slots=1, context_tokens=512, nice=0)) as pool:
        await loaded(pool, gemma, FULL)
        text = "Translate to Japanese, Russian and emoji: 日本語 русский 😀"
        result = await answer(pool, gemma, ask(text, max_tokens=40))
    assert b"".join(token.piece for token in result.tokens).decode("utf-8", "ignore").strip()
