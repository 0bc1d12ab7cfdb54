"""Answers held to a form, prompts by token, biases and probabilities, on a real model that has nothing to say."""

from __future__ import annotations

import json
import threading
from typing import Any

import jsonschema
import numpy as np
import pytest

from meshd.core.errors import BadInput, Overloaded
from meshd.core.generation import Bias, Format, FormatKind, Generation, Prompt, Sampling
from meshd.engine.constraint import Grammars
from meshd.engine.grammar import of_format
from meshd.engine.prompts import Form
from meshd.engine.scores import scores
from meshd.engine.warming import COMPILE_TIMEOUT_S, Warming
from tests.engine.bench import Bench
from tests.engine.tiny import write_tiny
from tests.helpers import until

pytestmark = pytest.mark.live
END = 2


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(write_tiny(tmp_path_factory.mktemp("form") / "form.gguf"), context_tokens=512)


def schema(value: object) -> Format:
    return Format(FormatKind.JSON_SCHEMA, json.dumps(value))


def ask(form: Format, *, seed: int = 1, biases: tuple[Bias, ...] = (), max_tokens: int = 300) -> Generation:
    return Generation(Prompt("x"), Sampling(temperature=1.5, seed=seed, biases=biases), max_tokens, format=form)


SCHEMAS: dict[str, Any] = {
    "object": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 99}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "list": {"type": "array", "items": {"enum": ["x", "yy", None, 3]}, "minItems": 3, "maxItems": 6},
    "text": {"type": "string", "pattern": "^[a-f]{2}-[0-9]{3}$"},
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"leaf": {"const": 1}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["leaf", "next"],
                "additionalProperties": False,
            }
        },
    },
    "number": {"type": "integer", "minimum": 10, "maximum": 99},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_is_drawn_the_answer_has_its_form(bench: Bench, name: str) -> None:
    said = set()
    for seed in range(12):
        answer = bench.generate(ask(schema(SCHEMAS[name]), seed=seed))
        assert answer.reason == "stop", answer
        jsonschema.validate(json.loads(answer.text), SCHEMAS[name])
        said.add(answer.text)
    assert len(said) > 1


def test_the_end_comes_only_when_the_form_is_fulfilled(bench: Bench) -> None:
    eager = (Bias(END, 100.0),)
    answer = bench.generate(ask(schema(SCHEMAS["object"]), biases=eager))
    jsonschema.validate(json.loads(answer.text), SCHEMAS["object"])
    assert bench.generate(Generation(Prompt("x"), Sampling(biases=eager))).text == ""


def test_white_space_alone_never_fills_an_answer(bench: Bench) -> None:
    blank = tuple(Bias(t, 100.0) for t, piece in enumerate(bench.model.pieces()) if piece and not piece.strip())
    assert len(blank) >= 5
    form = schema({**SCHEMAS["object"]})
    answer = bench.generate(ask(form, biases=blank))
    assert answer.reason == "stop" and answer.text.count("\n") >= 3
    jsonschema.validate(json.loads(answer.text), SCHEMAS["object"])
    assert bench.generate(ask(form, biases=blank, max_tokens=5)).reason == "length"


def test_any_object_is_an_object(bench: Bench) -> None:
    closing = tuple(Bias(t, 4.0) for t, piece in enumerate(bench.model.pieces()) if piece in (b"}", b'"'))
    answers = [bench.generate(ask(Format(FormatKind.JSON_OBJECT), seed=s, biases=closing)) for s in range(6)]
    assert all(isinstance(json.loads(a.text), dict) for a in answers if a.reason == "stop")
    assert sum(a.reason == "stop" for a in answers) >= 3


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"type": "strange"}, "strange"),
        ({"type": "string", "pattern": "(a|b"}, "unclosed"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "integer", "multipleOf": 9_999_991}, "multipleOf"),
        ({"allOf": [{"multipleOf": 1009}, {"multipleOf": 0.01}]}, "multipleOf"),
        ([], "object"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(bench: Bench, value: object, reason: str) -> None:
    refused = bench.generate(ask(schema(value))).refused
    assert refused is not None
    code, text, param = refused
    assert (code, param) == ("invalid_request", "response_format") and reason in text
    assert len(text) < 300 and "x-guidance" not in text and "start:" not in text


def test_a_schema_nested_beyond_reason_or_no_json_is_refused(bench: Bench) -> None:
    for text in ('{"not": ' * 5000 + "{}" + "}" * 5000, "{", '{"multipleOf": NaN}', '{"multipleOf": 1e999}'):
        refused = bench.generate(ask(Format(FormatKind.JSON_SCHEMA, text))).refused
        assert refused is not None and refused[2] == "response_format", text[:20]


def test_what_was_compiled_for_those_who_left_is_not_kept_for_ever(bench: Bench) -> None:
    """One that cancels while its grammar compiles leaves it behind."""
    works = bench.works
    for number in range(40):
        form = Format(FormatKind.JSON_SCHEMA, json.dumps({"const": f"left {number}"}))
        assert works.start(5000 + number, ask(form), [], 0.0) == []
        works.cancel(5000 + number)
        for thread in works._warming._threads:
            thread.join()
        assert works.warm(5000 + number) == []
    assert len(works._grammars._compiled) <= 32


def test_what_nobody_foresaw_in_a_request_costs_the_request(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def slips(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.works.prompts, "form", slips)
    ((kind, _, code, text, _),) = bench.works.start(6000, ask(Format()), [], 0.0)
    assert (kind, code) == ("refused", "invalid_request") and "ZeroDivisionError" in text
    monkeypatch.undo()
    assert bench.generate(ask(Format())).reason


def test_a_grammar_is_compiled_once_and_few_are_kept(bench: Bench) -> None:
    grammars = Grammars(bench.model)
    texts = [of_format(schema({"const": number})) or "" for number in range(40)]
    grammars.matcher(texts[0], "response_format")
    assert grammars.known(texts[0]) and not grammars.known(texts[1])
    for text in texts:
        grammars.matcher(text, "response_format")
    assert grammars.known(texts[-1]) and not grammars.known(texts[0])


def test_copies_of_a_grammar_do_not_know_each_other(bench: Bench) -> None:
    text = of_format(schema({"const": "ab"})) or ""
    one, other = (bench.works.prompts._grammars.matcher(text, "response_format") for _ in range(2))
    assert one.feed(b'"ab') and not one.feed(b"c")
    assert other.feed(b'"ab"') and other.complete


class Stuck:
    """A compiler that is told when to end."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def warm(self, text: str) -> None:
        self.end.wait()


def test_a_grammar_that_takes_too_long_costs_its_own_request_only() -> None:
    stuck, told = Stuck(), []
    warming = Warming(stuck, told.append)  # type: ignore[arg-type]
    request = ask(Format(FormatKind.JSON_OBJECT))
    for id in range(4):
        warming.begin(id, request, [], Form("x", "response_format"), now_s=float(id))
    with pytest.raises(Overloaded):
        warming.begin(9, request, [], Form("x", "response_format"), now_s=5.0)
    assert warming.take(3) is not None and warming.take(3) is None
    assert warming.overdue(COMPILE_TIMEOUT_S - 0.1) == []
    ((id, error),) = warming.overdue(COMPILE_TIMEOUT_S)
    assert id == 0 and isinstance(error, BadInput) and error.param == "response_format"
    assert warming.busy
    stuck.end.set()


async def test_others_go_on_while_a_grammar_is_compiled(bench: Bench) -> None:
    works, request = bench.works, ask(schema({"const": "compiled beside"}))
    assert works.start(601, request, [], 0.0) == [] and works.busy
    assert len(bench.generate(Generation(Prompt("x"), Sampling(temperature=0), 5)).tokens) == 5
    await until(lambda: 601 in bench.warmed, 60, "the grammar")
    (started,) = works.warm(601)
    assert started[:2] == ["started", 601]
    works.cancel(601)
    # Now it is known: the next one starts at once.
    assert works.start(602, request, [], 0.0)[0][0] == "started"
    works.cancel(602)
    assert not works.busy


async def test_whoever_leaves_while_its_grammar_is_compiled_is_not_started(bench: Bench) -> None:
    works = bench.works
    assert works.start(603, ask(schema({"const": "left"})), [], 0.0) == []
    works.cancel(603)
    assert not works.busy
    await until(lambda: 603 in bench.warmed, 60, "the grammar")
    assert works.warm(603) == [] and works.overdue(1e9) == []


class Odd:
    """A vocabulary that no grammar can be made over."""

    vocab_tokens = 1

    def pieces(self) -> list[bytes]:
        return [b"a"]

    def ends(self, token: int) -> bool:
        raise ValueError("odd")


def test_an_odd_vocabulary_costs_the_request_and_not_the_engine() -> None:
    with pytest.raises(BadInput, match="odd"):
        Grammars(Odd()).matcher("start: /a/", "response_format")


def test_a_prompt_by_token_is_the_text_it_spells(bench: Bench) -> None:
    tokens = tuple(bench.model.tokenize("hello", start=True, special=True))
    greedy = Sampling(temperature=0)
    spelt = bench.generate(Generation(Prompt("hello"), greedy, 10))
    assert bench.generate(Generation(Prompt(tokens=tokens), greedy, 10)).ids == spelt.ids
    refused = bench.generate(Generation(Prompt(tokens=(5, bench.model.vocab_tokens)))).refused
    assert refused is not None and (refused[0], refused[2]) == ("invalid_request", "prompt")


def test_a_bias_forces_forbids_and_must_name_a_token(bench: Bench) -> None:
    forced = bench.generate(Generation(Prompt("x"), Sampling(temperature=1, biases=(Bias(70, 100.0),)), 5))
    assert forced.ids == [70] * 5
    first = bench.generate(Generation(Prompt("x"), Sampling(temperature=0), 1)).ids[0]
    forbidden = bench.generate(Generation(Prompt("x"), Sampling(temperature=0, biases=(Bias(first, -100.0),)), 1))
    assert forbidden.ids != [first]
    unknown = (Bias(bench.model.vocab_tokens, 1.0),)
    refused = bench.generate(Generation(Prompt("x"), Sampling(biases=unknown))).refused
    assert refused is not None and (refused[0], refused[2]) == ("invalid_request", "logit_bias")


def test_scores_are_the_models_own_whatever_bends_the_draw(bench: Bench) -> None:
    plain = bench.generate(Generation(Prompt("x"), Sampling(temperature=0), 1, top_logprobs=20)).tokens[0]
    assert plain.score is not None and plain.score.logprob == plain.score.top[0].logprob
    third = plain.score.top[2]
    bent = Sampling(temperature=2, top_p=0.5, frequency_penalty=1, biases=(Bias(third.id, 100.0),))
    for form in (Format(), schema({"const": "a"})):
        other = bench.generate(Generation(Prompt("x"), bent, 1, top_logprobs=20, format=form)).tokens[0]
        assert other.score is not None and other.score.top == plain.score.top
        if form == Format():
            assert (other.id, other.score.logprob) == (third.id, third.logprob)


def test_scores_are_logarithms_of_probabilities_best_first_ties_by_id() -> None:
    logits = np.array([1.0, 3.0, -2.0, 3.0, 3.0, 0.5], dtype=np.float32)
    expected = np.log(np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum())
    score = scores(logits, 2, 4, lambda token: b"<%d>" % token)
    assert score.logprob == pytest.approx(expected[2])
    assert [(a.id, a.piece) for a in score.top] == [(1, b"<1>"), (3, b"<3>"), (4, b"<4>"), (0, b"<0>")]
    assert [a.logprob for a in score.top] == pytest.approx([expected[i] for i in (1, 3, 4, 0)])
    assert scores(logits, 0, 0, bytes).top == () and len(scores(logits, 0, 20, bytes).top) == 6
