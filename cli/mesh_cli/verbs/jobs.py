"""`mesh jobs`."""

from __future__ import annotations

import time
from typing import Any

import click

from mesh_cli.common import connect, emit
from mesh_cli.failure import Failure
from mesh_cli.group import Verb, json_option
from meshd.api import contract


@click.command(
    "jobs",
    cls=Verb,
    examples=[
        ("mesh jobs", "what runs and what ran lately, newest first"),
        ("mesh jobs job_3f9a", "one job and its attempts; a unique beginning of the id will do"),
    ],
)
@click.argument("job", required=False)
@json_option
@click.pass_context
def command(context: click.Context, job: str | None, as_json: bool) -> None:
    """Running and recent jobs: sent from here, and run here for others."""
    with connect(context) as api:
        view = api.get(contract.JOBS)
    from mesh_cli.render.jobs import job_detail, job_table

    now = time.time()
    if job is None:
        emit(view, as_json, lambda: job_table(view["jobs"], now=now))
    else:
        found = _find(view["jobs"], job)
        emit(found, as_json, lambda: job_detail(found, now=now))


def _find(jobs: list[dict[str, Any]], beginning: str) -> dict[str, Any]:
    found = [j for j in jobs if j["id"].startswith(beginning) or j["id"].startswith(f"job_{beginning}")]
    if not found:
        raise Failure("not_found", f"no recent job {beginning!r}", hint="mesh jobs lists them")
    if len({j["id"] for j in found}) > 1:
        raise Failure("invalid_request", f"{len(found)} jobs begin with {beginning!r}", hint="type more of the id")
    return found[0]
