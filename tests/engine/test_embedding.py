"""Vectors of texts, and tokens of texts: real models, without their process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from meshd.core.chat import Message
from meshd.core.generation import Generation, Prompt, Sampling, Token
from meshd.core.job import Embedding, Tokenization
from meshd.engine.decoding import WINDOW_TOKENS
from meshd.engine.embedding import Embeddings, embeds
from meshd.engine.llama_vectors import PART_TOKENS, Part, States
from tests.engine.bench import Bench, Result
from tests.engine.tiny import BERT_CONTEXT_TOKENS, WIDTH, write_tiny, write_tiny_bert

pytestmark = pytest.mark.live
CONTEXT_TOKENS = 300
TEXTS = ("a b", "", "once upon a time " * 12, "z", *(f"text {i} " * (i + 1) for i in range(12)))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(write_tiny(tmp_path_factory.mktemp("embed") / "tiny.gguf"), CONTEXT_TOKENS)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(write_tiny_bert(tmp_path_factory.mktemp("embed") / "bert.gguf"), CONTEXT_TOKENS)


def vectors(result: Result) -> npt.NDArray[np.float32]:
    assert result.refused is None and result.reason == "stop", result
    assert all(token.id == 0 for token in result.tokens)
    return np.stack([np.frombuffer(token.piece, dtype="<f4") for token in result.tokens])


def of(*texts: str) -> Embedding:
    return Embedding(tuple(Prompt(text) for text in texts))


def states(model: Bench, text: str) -> States:
    """The states of all tokens, computed at once."""
    context = model.model.vectors(1)
    tokens = model.model.tokenize(text, start=True, special=False)
    (rows,) = context.states([Part(0, 0, tokens)])
    return rows


def test_every_input_becomes_a_vector_of_length_one(bench: Bench) -> None:
    result = bench.aside(of(*TEXTS))
    found = vectors(result)
    assert found.shape == (len(TEXTS), WIDTH)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)
    assert [token.index for token in result.tokens] == list(range(len(TEXTS)))
    assert result.prompt_tokens == sum(len(bench.model.tokenize(t, start=True, special=False)) for t in TEXTS)
    assert any(len(t) > 2 * PART_TOKENS for t in TEXTS), "some are computed in several parts"


def test_a_vector_is_the_mean_of_the_texts_states_whatever_its_company(bench: Bench) -> None:
    together = vectors(bench.aside(of(*TEXTS)))
    for place in (0, 3, 9):
        mean = states(bench, TEXTS[place]).mean(axis=0)
        assert together[place] == pytest.approx(mean / np.linalg.norm(mean), abs=2e-3)
    alone = np.concatenate([vectors(bench.aside(of(text))) for text in TEXTS])
    assert (together * alone).sum(axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=2e-3)
    others = together @ together.T - np.eye(len(TEXTS))
    assert others.max() < 0.9999, "different texts have different vectors"


def test_vectors_that_were_delivered_are_not_computed_again(bench: Bench) -> None:
    whole = bench.aside(of(*TEXTS))
    for cut in range(1, len(TEXTS) + 1):
        rest = bench.aside(of(*TEXTS), whole.tokens[:cut])
        assert [token.index for token in rest.tokens] == list(range(cut, len(TEXTS)))
        assert (rest.reason, rest.prompt_tokens) == ("stop", whole.prompt_tokens)
        if cut < len(TEXTS):
            assert vectors(rest) == pytest.approx(vectors(whole)[cut:], abs=2e-3)


def test_inputs_by_token_and_inputs_that_cannot_be(bench: Bench) -> None:
    tokens = tuple(bench.model.tokenize("a b", start=True, special=False))
    by_token = bench.aside(Embedding((Prompt(tokens=tokens),)))
    assert vectors(by_token) == pytest.approx(vectors(bench.aside(of("a b"))), abs=1e-5)
    vocabulary = bench.model.vocab_tokens
    refusals = {
        of("a", "x" * CONTEXT_TOKENS): "context_length_exceeded",
        Embedding((Prompt(tokens=(vocabulary,)),)): "invalid_request",
        Embedding((Prompt(messages=(Message("user", "x"),)),)): "invalid_request",
    }
    for work, code in refusals.items():
        refused = bench.aside(work).refused
        assert refused is not None and (refused[0], refused[2]) == (code, "input")
    longest = bench.aside(of("x" * (CONTEXT_TOKENS - 1)))
    assert longest.prompt_tokens == CONTEXT_TOKENS and len(vectors(longest)) == 1


def test_a_running_answer_gets_its_turn_between_the_steps_of_a_long_job(bench: Bench) -> None:
    works = bench.works
    works.decoding.start(901, Generation(Prompt("x"), Sampling(temperature=0), 200), [])
    works.start(902, of(*("long text " * 20 for _ in range(8))), [], 0.0)
    steps = answered = 0
    while (messages := works.step_aside()) is not None:
        assert all(message[0] != "refused" for message in messages)
        steps += 1
        answered += sum(message[0] == "tokens" for message in works.decoding.step(works.decoding.next_step()))
    assert steps >= 8 * 200 / PART_TOKENS and answered >= steps - 2
    works.cancel(901)
    assert not works.busy


def test_a_cancelled_job_leaves_the_next_one_a_clean_context(bench: Bench) -> None:
    works = bench.works
    works.start(801, of(*TEXTS), [], 0.0)
    works.step_aside()
    works.cancel(801)
    assert not works.busy
    assert vectors(bench.aside(of("a b"))) == pytest.approx(vectors(bench.aside(of("a b"))), abs=1e-6)
    expected = states(bench, "a b").mean(axis=0)
    assert vectors(bench.aside(of("a b")))[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)


def test_a_bert_embeds_and_tokenises_and_generates_nothing(bert: Bench) -> None:
    assert [str(ability) for ability in bert.works.abilities] == ["embed", "tokenize"]
    found = vectors(bert.aside(of("a b c", "z", "a b c d e f g h i j")))
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    mean = states(bert, "a b c").mean(axis=0)
    assert found[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    # The vector depends on every place, the last one as well: nothing is cut off.
    assert abs(float((vectors(bert.aside(of("a b d")))[0] * found[0]).sum())) < 0.9999
    refused = bert.aside(of("a " * BERT_CONTEXT_TOKENS)).refused
    assert refused is not None and (refused[0], refused[2]) == ("context_length_exceeded", "input")
    (refusal,) = bert.works.start(700, Generation(Prompt("a")), [], 0.0)
    assert refusal[2] == "invalid_request" and refusal[4] == "model"


@pytest.mark.parametrize(("pooling", "row"), [(gguf.PoolingType.CLS, 0), (gguf.PoolingType.LAST, -1)])
def test_pooling_follows_the_file(tmp_path: Path, pooling: gguf.PoolingType, row: int) -> None:
    model = Bench(write_tiny_bert(tmp_path / "bert.gguf", pooling=pooling))
    expected = states(model, "a b c")[row]
    assert vectors(model.aside(of("a b c")))[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)


def test_no_vectors_of_a_ranking_model_or_of_vectors_beyond_a_frame() -> None:
    assert embeds(None, 4096) and embeds("1", 12_288)
    assert not embeds("4", 512) and not embeds("1", 12_289)


class Flat:
    """Vectors that cost nothing."""

    context_tokens, step_tokens, whole, pooling = 64, 64, False, None

    def states(self, parts: Sequence[Part]) -> list[States]:
        return [np.ones((len(part.tokens), 2), dtype=np.float32) for part in parts]

    def clear(self) -> None:
        return


def test_a_lagging_reader_holds_its_job_and_no_other() -> None:
    jobs = Embeddings(Flat, lambda work: [[1]] * len(work.inputs), 2)
    jobs.start(1, of(*["x"] * 2048), [])
    while jobs.step() is not None:
        pass
    assert jobs.busy
    jobs.start(2, of("x"), [])
    assert jobs.step() == [
        ["tokens", 2, 0, [[0, np.full(2, 0.5**0.5, dtype="<f4").tobytes()]]],
        ["finished", 2, "stop"],
    ]
    assert jobs.start(3, of("x"), [])[0][0] == "started"
    assert jobs.start(4, of("x"), [])[0][2] == "mesh_overloaded"
    jobs.cancel(3)
    told = 0
    jobs.acknowledge(1, WINDOW_TOKENS)
    while (messages := jobs.step()) is not None:
        told += sum(len(message[3]) for message in messages if message[0] == "tokens")
    assert told == 2048 - WINDOW_TOKENS and not jobs.busy


def test_a_text_tokenised_and_put_together_again(bench: Bench) -> None:
    text = "héllo <|user|> wörld" * 90
    plain = bench.aside(Tokenization(Prompt(text)))
    assert plain.ids == bench.model.tokenize(text, start=False, special=True)
    assert (plain.text, plain.reason, plain.prompt_tokens) == (text, "stop", len(plain.ids))
    assert len(plain.ids) > WINDOW_TOKENS
    started = bench.aside(Tokenization(Prompt(text), special=True))
    assert started.ids == [1, *plain.ids] and started.tokens[0].piece == b"<s>"
    back = bench.aside(Tokenization(Prompt(tokens=tuple(started.ids))))
    assert back.text == "<s>" + text
    for cut in (1, 700, len(plain.ids)):
        assert bench.aside(Tokenization(Prompt(text)), plain.tokens[:cut]).tokens == plain.tokens[cut:]


def test_messages_are_tokenised_as_the_model_gets_them(bench: Bench) -> None:
    prompt = Prompt(messages=(Message("user", "hi <|user|>"),))
    tokens = bench.aside(Tokenization(prompt))
    assert tokens.text == "<s><|user|>hi <|user|><|done|>\n<|assistant|>"
    assert tokens.prompt_tokens == bench.generate(Generation(prompt, max_tokens=1)).prompt_tokens
    assert bench.model.tokenize("<|user|>", start=False, special=True)[0] in tokens.ids


def test_what_is_no_token_is_refused(bench: Bench) -> None:
    refused = bench.aside(Tokenization(Prompt(tokens=(1, 10**6)))).refused
    assert refused is not None and (refused[0], refused[2]) == ("invalid_request", "tokens")
    many = [Token(i, 1, b"") for i in range(5)]
    refused = bench.aside(Tokenization(Prompt("a")), many).refused
    assert refused is not None and refused[2] == "delivered"
