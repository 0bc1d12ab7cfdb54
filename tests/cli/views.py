"""Fixed pictures of a small mesh, made from the real view types, so that they cannot drift from the contract."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from meshd.node import views

NOW = 1_800_000_000.0
DIGEST = "ab" * 32


def plain(view: Any) -> Any:
    """What travels: asdict, then JSON and back."""
    return json.loads(json.dumps(asdict(view)))


def model(name: str = "gemma3-270m", generation: float = 78.4) -> views.ModelView:
    return views.ModelView(name, DIGEST, 32768, True, 752.0, generation)


def node(name: str, **changes: Any) -> views.NodeView:
    values: dict[str, Any] = {
        "id": f"12D3KooW{name}",
        "name": name,
        "site": "berlin",
        "region": "eu/de/berlin",
        "clearance": "confidential",
        "liveness": "alive",
        "state": "open",
        "reason": "",
        "talked_age_s": 0.4,
        "heard_age_s": 0.4,
        "cpu_threads": 8,
        "memory_bytes": 16 * 2**30,
        "gpus": (),
        "models": (model(),),
        "slots": 4,
        "slots_free": 3,
        "addresses": ("/ip4/127.0.0.1/tcp/4717",),
        "software": "meshd 0.1.0",
    }
    return views.NodeView(**{**values, **changes})


def job(number: int = 1, **changes: Any) -> views.JobView:
    values: dict[str, Any] = {
        "id": f"job_{number:02x}" + "3f" * 15,
        "role": "submitter",
        "kind": "generate",
        "model": "gemma3-270m",
        "state": "running",
        "submitter": "atlas",
        "attempts": (
            views.AttemptView(1, "12D3KooWboreas", "boreas", 34, "lost", None),
            views.AttemptView(2, "12D3KooWceres", "ceres", 12, "", 61.3),
        ),
        "prompt_tokens": 17,
        "completion_tokens": 46,
        "started_at": NOW - 2.1,
        "ended_at": None,
        "finish": "",
    }
    return views.JobView(**{**values, **changes})


def done_job() -> views.JobView:
    return job(2, state="done", started_at=NOW - 90, ended_at=NOW - 88.5, finish="stop")


SHARE = views.ShareView(True, False, False, 0.5, 4, 4 * 2**30)
ORG = views.OrgView(
    "acme", "5Fh9kQ2mWJ3", True, 7, NOW + 29.5 * 86400, "berlin", "eu/de/berlin", "confidential", ("issuer", "node")
)


def status(**changes: Any) -> views.StatusView:
    values: dict[str, Any] = {
        "me": node("atlas", liveness="self", talked_age_s=None, heard_age_s=0.0),
        "org": ORG,
        "share": SHARE,
        "peers": (
            node("ceres", liveness="suspect", state="paused", reason="the owner is back", talked_age_s=4.2),
            node("boreas", talked_age_s=None, heard_age_s=3.0, models=(model(), model("qwen3-4b", 9.3))),
        ),
        "jobs": (job(), done_job()),
        "models": (model(generation=81.0),),
        "engines": (views.EngineView("gemma3-270m", DIGEST, 4242, 384 * 2**20, 4, 3, "ready"),),
        "warnings": ("the clock of ceres is 2.5 s ahead",),
        "api_url": "http://127.0.0.1:4720",
        "uptime_s": 7800.0,
        "version": "0.1.0",
    }
    return views.StatusView(**{**values, **changes})
