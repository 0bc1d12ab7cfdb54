"""`mesh doctor`."""

from __future__ import annotations

import time
from typing import Any

import click

from mesh_cli.checks import Check, online_checks
from mesh_cli.common import emit, home_of
from mesh_cli.exits import Exit
from mesh_cli.failure import Failure
from mesh_cli.group import Verb, json_option
from mesh_cli.home import Home
from mesh_cli.program import offline


@click.command("doctor", cls=Verb, examples=[("mesh doctor", "exit status 12 when something is wrong")])
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Look at this node from all sides, and say what is wrong and what to do about it."""
    home = home_of(context)
    checks = [*_offline_checks(home), *online_checks(home, now=time.time())]
    healthy = all(c["ok"] for c in checks)
    from mesh_cli.render.doctor import check_list

    emit({"ok": healthy, "checks": checks}, as_json, lambda: check_list(checks))
    if not healthy:
        raise click.exceptions.Exit(Exit.UNHEALTHY)


def _offline_checks(home: Home) -> list[Check]:
    try:
        found: list[Any] = offline(home, "doctor").get("checks", [])
    except Failure as failure:
        return [{"name": "home", "ok": False, "detail": failure.message, "hint": failure.hint}]
    return [
        {
            "name": str(c.get("name", "?")),
            "ok": c.get("ok") is True,
            "detail": str(c.get("detail", "")),
            "hint": str(c.get("hint", "")),
        }
        for c in found
        if isinstance(c, dict)
    ]
