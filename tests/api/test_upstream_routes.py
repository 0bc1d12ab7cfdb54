"""The routes about upstreams: each reaches the service with parsed arguments, and answers what the contract says."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.core.classes import DataClass
from meshd.core.errors import AlreadyDone, BadInput, MeshError, Unreachable
from meshd.core.upstream import Upstream
from tests.api.fake_service import FakeService
from tests.api.running import running

PATH = "/mesh/v1/upstreams"
LEAST = {"url": "HTTP://Rack:8000", "model": "org/big"}
MOST = {**LEAST, "name": "big", "class_max": "public", "slots": 3, "context_tokens": 8192, "key": "secret"}


@pytest.mark.parametrize(
    ("body", "upstream"),
    [
        (LEAST, Upstream("org/big", "http://rack:8000/v1", "org/big")),
        ({**LEAST, "name": None, "key": None}, Upstream("org/big", "http://rack:8000/v1", "org/big")),
        (MOST, Upstream("big", "http://rack:8000/v1", "org/big", DataClass.PUBLIC, 3, 8192, "secret")),
    ],
)
async def test_adding(body: dict[str, Any], upstream: Upstream) -> None:
    async with running(FakeService()) as api:
        answer = await api.http.post(PATH, json=body)
    assert answer.status_code == 200 and api.service.calls == [("add_upstream", upstream)]
    assert answer.json()["name"] == upstream.name and "key" not in answer.json() and "secret" not in answer.text


async def test_listing_and_removing() -> None:
    async with running(FakeService()) as api:
        listed = (await api.http.get(PATH)).json()["upstreams"]
        gone = await api.http.delete(f"{PATH}/org/big")
        missing = await api.http.delete(f"{PATH}/other")
    assert [u["name"] for u in listed] == ["org/big"] and listed[0]["has_key"] is True
    assert (gone.status_code, gone.json()) == (200, {})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"url": None}, "url"),
        ({"url": "rack:8000"}, "url"),
        ({"model": ""}, "model"),
        ({"class_max": "secret"}, "class_max"),
        ({"slots": 0}, "slots"),
        ({"context_tokens": 0}, "context_tokens"),
        ({"key": "two words"}, "key"),
        ({"token": "x"}, "token"),
    ],
)
async def test_a_wrong_field_is_named_and_reaches_nobody(change: dict[str, Any], param: str) -> None:
    async with running(FakeService()) as api:
        answer = await api.http.post(PATH, json={**LEAST, **change})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert api.service.calls == []


@pytest.mark.parametrize(
    ("failure", "status"),
    [(BadInput("no", param="key"), 400), (Unreachable("no"), 503), (AlreadyDone("no"), 409)],
)
async def test_what_is_wrong_with_the_server_is_told(failure: MeshError, status: int) -> None:
    async with running(FakeService(failure=failure)) as api:
        answer = await api.http.post(PATH, json=LEAST)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, "no")


async def test_no_token_no_upstreams() -> None:
    async with running(FakeService()) as api:
        answer = await api.http.get(PATH, headers={"Authorization": "Bearer other"})
    assert answer.status_code == 401 and api.service.calls == []
