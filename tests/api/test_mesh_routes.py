"""Our own routes: each reaches the service with parsed arguments, and answers what the contract says."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.core.classes import DataClass, Region
from meshd.core.errors import AlreadyDone, BeyondLimits, InviteExpired, MeshError, NotAuthorised, NotFound, Unreachable
from meshd.node.views import InviteRequest, NoopRequest
from tests.api.fake_service import FakeService
from tests.api.running import running

NODE = "12D3KooW" + "A" * 44
INVITE = {"site": "hq", "region": "eu/de", "clearance": "confidential", "valid_s": 60, "uses": 2, "labels": ["gpu"]}


@pytest.mark.parametrize(
    ("path", "body", "call"),
    [
        ("share", {"cpu": 0.5, "memory_bytes": 1 << 30}, ("share", 0.5, 1 << 30)),
        ("share", {"cpu": None, "memory_bytes": None}, ("share", None, None)),
        ("share", None, ("share", None, None)),
        ("unshare", None, ("unshare",)),
        ("pause", {}, ("pause",)),
        ("resume", None, ("resume",)),
        ("drain", {"deadline_s": 5}, ("drain", 5.0)),
        ("drain", None, ("drain", 60.0)),
        ("models", {"path": "/m.gguf"}, ("add_model", "/m.gguf", None)),
        ("models", {"path": "/m.gguf", "name": "n"}, ("add_model", "/m.gguf", "n")),
        ("invites", INVITE, None),
        ("noop", None, ("noop", NoopRequest())),
        ("noop", {"worker": NODE}, ("noop", NoopRequest(NODE))),
        ("noop", {"worker": "blue fox", "count": 9, "concurrency": 3}, ("noop", NoopRequest("blue fox", 9, 3))),
        ("shutdown", None, ("shutdown",)),
    ],
)
async def test_posts(path: str, body: Any, call: tuple[object, ...] | None) -> None:
    expected = call or (
        "invite",
        InviteRequest("hq", Region("eu/de"), DataClass.CONFIDENTIAL, 60.0, 2, ("gpu",)),
    )
    async with running(FakeService()) as api:
        answer = await api.http.post(f"/mesh/v1/{path}", json=body) if body is not None else None
        if answer is None:
            answer = await api.http.post(f"/mesh/v1/{path}")
    assert answer.status_code == 200, answer.text
    assert api.service.calls == [expected]
    known = {
        "noop": {"ms": 1.5, "round_trips_ms": [1.5], "wall_s": 0.0015},
        "shutdown": {},
        "invites": {"invite": "mesh1invite"},
    }
    if path in known:
        assert answer.json() == known[path]
    elif path != "models":
        assert answer.json()["enabled"] is True


async def test_reads() -> None:
    async with running(FakeService()) as api:
        status = (await api.http.get("/mesh/v1/status")).json()
        nodes = (await api.http.get("/mesh/v1/nodes")).json()
        jobs = (await api.http.get("/mesh/v1/jobs")).json()
        models = (await api.http.get("/mesh/v1/models")).json()
    assert status["me"]["name"] == "desk" and status["org"]["name"] == "acme"
    assert [n["id"] for n in nodes["nodes"]] == [NODE] and jobs == {"jobs": []}
    assert models["models"][0]["name"] == "org/tiny"


async def test_a_model_is_removed_by_a_name_with_slashes() -> None:
    async with running(FakeService()) as api:
        gone = await api.http.delete("/mesh/v1/models/org/tiny")
        missing = await api.http.delete("/mesh/v1/models/other")
    assert (gone.status_code, gone.json()) == (200, {})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("share", {"cpu": 0}, "cpu"),
        ("share", {"cpu": "50%"}, "cpu"),
        ("share", {"memory_bytes": 5}, "memory_bytes"),
        ("share", {"gpu": 1}, "gpu"),
        ("pause", {"for": 1}, "for"),
        ("drain", {"deadline_s": -1}, "deadline_s"),
        ("models", {}, "path"),
        ("models", {"path": 7}, "path"),
        ("models", {"path": "a\x00b"}, "path"),
        ("invites", {**INVITE, "site": "?"}, "site"),
        ("invites", {**INVITE, "region": "EU"}, "region"),
        ("invites", {**INVITE, "clearance": "x"}, "clearance"),
        ("invites", {**INVITE, "uses": 0}, "uses"),
        ("invites", {**INVITE, "valid_s": 1e9}, "valid_s"),
        ("noop", {"worker": 5}, "worker"),
        ("noop", {"count": 10_001}, "count"),
        ("noop", {"concurrency": 0}, "concurrency"),
    ],
)
async def test_bad_bodies_never_reach_the_service(path: str, body: object, param: str) -> None:
    async with running(FakeService()) as api:
        answer = await api.http.post(f"/mesh/v1/{path}", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert api.service.calls == []


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (NotFound("x"), 404),
        (AlreadyDone("x"), 409),
        (BeyondLimits("x"), 400),
        (NotAuthorised("x"), 401),
        (InviteExpired("x"), 400),
        (Unreachable("x"), 503),
    ],
)
async def test_errors_of_the_service_keep_their_code(failure: MeshError, status: int) -> None:
    async with running(FakeService(failure=failure)) as api:
        answer = await api.http.post("/mesh/v1/pause")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, failure.code)
