"""An answer that is cut after any of its tokens goes on as if it had not been: every feature, every cut.

The real decoding over a real model, without its process. In exact mode the rest must equal the undisturbed run's in
ids, pieces and scores; by default what was delivered stands, and every constraint holds over the whole.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from meshd.core.chat import Message, Tool, ToolChoice, ToolMode
from meshd.core.generation import Bias, Format, FormatKind, Generation, Prompt, Sampling
from tests.engine.bench import Bench, Result
from tests.engine.tiny import write_tiny

pytestmark = pytest.mark.live

LENGTH = 40
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["river", "mountain", "town"]},
        "height": {"type": "integer", "minimum": -500, "maximum": 9000},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 2, "maxItems": 2},
    },
    "required": ["kind", "height", "tags"],
    "additionalProperties": False,
}
PLACE = {
    "type": "object",
    "properties": {"id": {"$ref": "#/$defs/id"}},
    "$defs": {"id": {"type": "integer", "minimum": 0, "maximum": 999_999}},
    "required": ["id"],
    "additionalProperties": False,
}
PAUSE = {
    "type": "object",
    "properties": {"s": {"type": "integer", "minimum": 1, "maximum": 60}},
    "required": ["s"],
    "additionalProperties": False,
}
TOOLS = (Tool("look", "Look at a place", json.dumps(PLACE)), Tool("wait.a-while", "", json.dumps(PAUSE)))
TEMPLATE = (
    "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content }}<|done|>{% endfor %}<|assistant|>{# <tool_call> #}"
)
OPENER = "<tool_call>"
CHAT = Prompt(messages=(Message("user", "what is there?"),))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    return Bench(write_tiny(path, template=TEMPLATE, control=(OPENER,)), context_tokens=512)


def ask(prompt: Prompt | None = None, *, max_tokens: int | None = LENGTH, **fields: Any) -> Generation:
    sampling = fields.pop("sampling", Sampling(temperature=0))
    return Generation(prompt or Prompt("once upon a time"), sampling, max_tokens, exact=True, **fields)


WARM = Sampling(temperature=1.1, top_p=0.95, seed=8)
PENALISED = Sampling(temperature=0, frequency_penalty=1.5, presence_penalty=0.7)
ANY_JSON = Format(FormatKind.JSON_SCHEMA, json.dumps(SCHEMA))


def opening_bias(bench: Bench) -> Bias:
    (opener,) = bench.model.tokenize(OPENER, start=False, special=True)
    return Bias(opener, 9.0)


def requests(bench: Bench) -> dict[str, Generation]:
    called = replace(WARM, biases=(opening_bias(bench),))
    biased = Sampling(temperature=0.8, seed=3, biases=tuple(Bias(token, 4.0) for token in (40, 50, 60, 300)))
    closing = [token for token, piece in enumerate(bench.model.pieces()) if piece == b"}"]
    endless = replace(WARM, biases=tuple(Bias(token, -100.0) for token in closing))
    return {
        "greedy": ask(),
        "seed": ask(sampling=WARM),
        "penalties": ask(sampling=PENALISED),
        "biases": ask(sampling=biased),
        "logprobs": ask(sampling=WARM, top_logprobs=5),
        "schema": ask(sampling=WARM, format=ANY_JSON, max_tokens=None, top_logprobs=2),
        "object": ask(sampling=endless, format=Format(FormatKind.JSON_OBJECT)),
        "must call": ask(CHAT, sampling=WARM, tools=TOOLS, tool_choice=ToolChoice(ToolMode.REQUIRED), max_tokens=48),
        "may call": ask(CHAT, sampling=called, tools=TOOLS, max_tokens=48, top_logprobs=0),
    }


NAMES = ("greedy", "seed", "penalties", "biases", "logprobs", "schema", "object", "must call", "may call")


@pytest.mark.parametrize("name", NAMES)
def test_exact_goes_on_identically_after_every_cut(bench: Bench, name: str) -> None:
    request = requests(bench)[name]
    whole = bench.generate(request)
    assert whole.refused is None and len(whole.tokens) >= LENGTH, whole
    assert (whole.tokens[0].score is not None) == (request.top_logprobs is not None)
    for cut in range(1, len(whole.tokens) + 1):
        rest = bench.generate(request, whole.tokens[:cut])
        assert (rest.tokens, rest.reason) == (whole.tokens[cut:], whole.reason), cut


def test_features_are_not_the_same_answer_by_another_name(bench: Bench) -> None:
    """Each of them changes what is said: otherwise the proof above would be about nothing."""
    plain = bench.generate(ask())
    warm = bench.generate(ask(sampling=WARM))
    asked = requests(bench)
    assert bench.generate(asked["penalties"]).ids != plain.ids != warm.ids
    assert bench.generate(asked["biases"]).ids != bench.generate(ask(sampling=Sampling(temperature=0.8, seed=3))).ids
    assert bench.generate(asked["logprobs"]).ids == warm.ids


def test_a_stop_string_is_found_whatever_part_of_it_was_delivered(bench: Bench) -> None:
    letters = tuple(
        Bias(token, 30.0) for c in "abcdefgh" for token in bench.model.tokenize(c, start=False, special=False)
    )
    sampling = Sampling(temperature=1.5, seed=4, biases=letters)
    free = bench.generate(ask(sampling=sampling))
    stop = b"".join(token.piece for token in free.tokens[20:26]).decode()
    request = ask(sampling=sampling, stop=("never", stop))
    whole = bench.generate(request)
    end = free.text.index(stop) + len(stop)
    assert (whole.text, whole.reason) == (free.text[:end], "stop")
    for exact in (True, False):
        for cut in range(1, len(whole.tokens) + 1):
            rest = bench.generate(replace(request, exact=exact), whole.tokens[:cut])
            assert (rest.text, rest.reason) == (whole.text[len(whole.tokens[:cut]) :], "stop"), (exact, cut)


@pytest.mark.parametrize("name", ["schema", "must call", "may call"])
def test_by_default_the_whole_still_has_its_form(bench: Bench, name: str) -> None:
    request = replace(requests(bench)[name], exact=False, max_tokens=None)
    if request.tools:
        request = replace(request, tool_choice=replace(request.tool_choice, parallel=False))
    whole = bench.generate(request)
    check = check_json if name == "schema" else check_call
    check(whole)
    for cut in range(1, len(whole.tokens) + 1, 3):
        rest = bench.generate(request, whole.tokens[:cut])
        check(Result([*whole.tokens[:cut], *rest.tokens], rest.reason))


def test_another_continuation_also_keeps_the_form(bench: Bench) -> None:
    """A default continuation may part from the undisturbed run. Another seed parts at once: still one valid whole."""
    request = replace(requests(bench)["schema"], exact=False)
    whole = bench.generate(request)
    different = 0
    cuts = range(1, len(whole.tokens), 4)
    for cut in cuts:
        other = replace(request, sampling=replace(WARM, seed=1000 + cut))
        rest = bench.generate(other, whole.tokens[:cut])
        check_json(Result([*whole.tokens[:cut], *rest.tokens], rest.reason))
        different += rest.ids != whole.ids[cut:]
    assert different > len(cuts) / 2


def check_json(result: Result) -> None:
    assert result.reason == "stop", result
    jsonschema.validate(json.loads(result.text), SCHEMA)


def check_call(result: Result) -> None:
    assert result.reason == "stop", result
    _, opener, call = result.data.partition(OPENER.encode())
    assert opener and call.endswith(b"</tool_call>"), result.data
    body = json.loads(call.removesuffix(b"</tool_call>"))
    assert set(body) == {"name", "arguments"} and body["name"] in {"look", "wait.a-while"}
    jsonschema.validate(body["arguments"], PLACE if body["name"] == "look" else PAUSE)


def test_a_delivered_token_that_breaks_the_form_is_refused(bench: Bench) -> None:
    request = requests(bench)["schema"]
    whole = bench.generate(request)
    wrong = replace(whole.tokens[1], id=bench.model.tokenize("}", start=False, special=False)[0])
    answer = bench.generate(request, [whole.tokens[0], wrong])
    assert answer.refused is not None and answer.refused[2] == "delivered"
