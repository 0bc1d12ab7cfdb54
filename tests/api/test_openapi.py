"""The document is true: it has every route, whatever it allows gets an answer of the form that it says, and whatever
it does not allow is refused in words. Requests are made from the document itself, the same ones in every run."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from typing import Any

import httpx
import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.core import NotSet

from meshd.api.app import build_app
from meshd.api.openapi import OPERATIONS, Operation, document, path_of
from tests.api.fake_service import FakeService, works
from tests.api.running import TOKEN, data_of

DOCUMENT = document()
BODIES = list({operation.asks: operation for operation in OPERATIONS if operation.asks}.values())
"""One route of each kind of body."""
LARGE = ("chat", "respond", "complete", "tokenize")
"""Bodies that take a tenth of a second to make up."""


def bounded(operation: Operation) -> settings:
    return settings(
        max_examples=6 if operation.name in LARGE else 15,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@cache
def validator(name: str) -> Draft202012Validator:
    root = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return Draft202012Validator(root)


def check(name: str, value: object) -> None:
    problems = [f"{list(e.absolute_path)}: {e.message[:200]}" for e in validator(name).iter_errors(value)]
    assert problems == [], (name, value)


def ask(operation: Operation, body: bytes | None, path: str = "") -> httpx.Response:
    """One request to the whole application, in a loop of its own."""

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=build_app(FakeService(works()), lambda: TOKEN))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as http:
            with trio.fail_after(20):
                return await http.request(operation.method, path or operation.path, content=body)

    return trio.run(go)


def judge(operation: Operation, answer: httpx.Response) -> None:
    """The answer has the form that the document gives it."""
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, answer.text
        check("Error", answer.json())
    elif answer.headers["content-type"].startswith("text/event-stream"):
        lines = [line for line in answer.text.split("\n") if line.startswith("data: ") and line != "data: [DONE]"]
        assert operation.event and lines
        for line in lines:
            check(operation.event, data_of(line))
    else:
        check(operation.tells, answer.json())


def test_the_document_is_one() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():  # type: ignore[index]
        Draft202012Validator.check_schema(schema)
    named = {part for part in json.dumps(DOCUMENT).split('"') if part.startswith("#/components/schemas/")}
    schemas = DOCUMENT["components"]["schemas"]  # type: ignore[index]
    assert {name.rpartition("/")[2] for name in named} <= set(schemas)


def test_the_document_has_every_route_and_no_other() -> None:
    app = build_app(FakeService(), lambda: TOKEN)
    served = sorted((m.lower(), path_of(r.path)) for r in app.routes for m in r.methods - {"HEAD"})  # type: ignore[attr-defined]
    written = sorted((m, path) for path, methods in DOCUMENT["paths"].items() for m in methods)  # type: ignore[attr-defined]
    assert served == written
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


def test_the_document_is_served() -> None:
    operation = next(o for o in OPERATIONS if o.name == "openapi")
    assert ask(operation, None).json() == json.loads(json.dumps(DOCUMENT))


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.bare or o.method == "get"], ids=lambda o: o.name)
def test_what_needs_no_body_answers_in_its_form(operation: Operation) -> None:
    path = operation.path.replace("{name:path}", "org/tiny")
    answer = ask(operation, None, path)
    assert answer.status_code == 200
    judge(operation, answer)


def body_of(case: Any) -> bytes | None:
    """A case's body: none, some garbage, or JSON."""
    if isinstance(case.body, NotSet):
        return None
    return case.body if isinstance(case.body, bytes) else json.dumps(whole_numbers(case.body)).encode()


def whole_numbers(value: Any) -> Any:
    """JSON schemas call 5.0 a whole number; we do not, so it is sent as 5."""
    if isinstance(value, dict):
        return {key: whole_numbers(v) for key, v in value.items()}
    if isinstance(value, list):
        return [whole_numbers(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@cache
def schema() -> Any:
    return schemathesis.openapi.from_dict(DOCUMENT)


CONTRADICTIONS = {
    "addUpstream": "url name model key",
    "chat": "messages top_logprobs stream_options max_tokens tool_choice tools response_format logit_bias",
    "complete": "stream_options best_of echo logit_bias",
    "embed": "dimensions",
    "respond": "stream_options logit_bias",
    "tokenize": "messages",
}
"""What a schema cannot say: fields that contradict each other, a tool's message without its call, one name twice, a
token's id beyond 31 bits, no such port, characters that cannot be printed."""


@pytest.mark.parametrize("operation", BODIES, ids=lambda o: o.name)
def test_what_the_document_allows_is_answered(operation: Operation) -> None:
    statuses: Counter[int] = Counter()

    @bounded(operation)
    @given(schema()[operation.path][operation.method].as_strategy())
    def each(case: Any) -> None:
        answer = ask(operation, body_of(case))
        statuses[answer.status_code] += 1
        judge(operation, answer)
        if answer.status_code != 200:
            param = str(answer.json()["error"]["param"]).split("[")[0]
            assert param in CONTRADICTIONS.get(operation.name, "").split(), (answer.text, case.body)

    each()
    assert statuses[200], statuses


@pytest.mark.parametrize("operation", BODIES, ids=lambda o: o.name)
def test_what_the_document_does_not_allow_is_refused_in_words(operation: Operation) -> None:
    @bounded(operation)
    @given(schema()[operation.path][operation.method].as_strategy(GenerationMode.NEGATIVE))
    def each(case: Any) -> None:
        answer = ask(operation, body_of(case))
        judge(operation, answer)
        if answer.status_code == 200:
            right = validator(operation.asks).is_valid(case.body) if body_of(case) else operation.bare
            assert right, case.body

    each()


@pytest.mark.parametrize("name", ["", "%00", "%ff", "..", "a/../b", "x" * 5000, "%2e%2e/", "☃", "a?b=c", "{name}"])
def test_strange_names_of_models_are_not_found(name: str) -> None:
    for operation in OPERATIONS:
        if "{name" in operation.path:
            answer = ask(operation, None, path_of(operation.path).replace("{name}", name))
            assert answer.status_code == 404, (operation.name, answer.text)
            check("Error", answer.json())
