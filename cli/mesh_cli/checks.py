"""What `mesh doctor` asks a running daemon."""

from __future__ import annotations

from typing import Any, TypedDict

from mesh_cli.failure import Failure
from mesh_cli.home import Home
from meshd.api import contract


class Check(TypedDict):
    """One question, its answer, and what to do when it is bad. The same four keys as the daemon program's."""

    name: str
    ok: bool
    detail: str
    hint: str


def check(name: str, ok: bool, detail: str, hint: str = "") -> Check:
    return {"name": name, "ok": ok, "detail": detail, "hint": "" if ok else hint}


def online_checks(home: Home, *, now: float) -> list[Check]:
    """Whether the daemon answers, and if so how the mesh looks from it at wall time ``now``."""
    try:
        home.daemon()
        from mesh_cli.client import Api

        with Api(home) as api:
            status = api.get(contract.STATUS)
            path = _path(api)
    except Failure as failure:
        return [check("daemon", False, failure.message, failure.hint)]
    daemon = check("daemon", True, f"answers at {status['api_url']}")
    return [daemon, _certificate(status, now), _peers(status), _models(status), path, *_warnings(status)]


def _certificate(status: dict[str, Any], now: float) -> Check:
    left_s = float(status["org"]["certificate_not_after"]) - now
    detail = f"valid for {left_s / 86400:.1f} more days" if left_s > 0 else "expired"
    return check("certificate", left_s > 0, detail, "is the clock right? else join again with a new invite")


def _peers(status: dict[str, Any]) -> Check:
    peers = status["peers"]
    alive = sum(p["liveness"] == "alive" for p in peers)
    if not peers:
        return check("peers", True, "none: this node is alone, its own models still answer")
    return check("peers", alive > 0, f"{alive} of {len(peers)} alive", "is the network up? mesh nodes shows them")


def _models(status: dict[str, Any]) -> Check:
    models = {m["name"] for owner in (status, *status["peers"]) for m in owner["models"]}
    detail = f"{len(models)} in reach" if models else "none in reach"
    return check("models", bool(models), detail, "mesh model add FILE")


def _path(api: Any) -> Check:
    try:
        answer = api.post(contract.NOOP, {})
    except Failure as failure:
        return check("task", False, failure.message, failure.hint)
    return check("task", True, f"an empty task came back after {float(answer['ms']):.1f} ms")


def _warnings(status: dict[str, Any]) -> list[Check]:
    return [check("warning", False, str(w)) for w in status["warnings"]]
