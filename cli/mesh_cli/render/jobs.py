"""Jobs and their attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mesh_cli.render.grid import Grid, grid
from mesh_cli.render.text import age, ago, clean, dim, heading, short_job, styled


def running(job: Mapping[str, Any]) -> bool:
    return job["ended_at"] is None


def where(job: Mapping[str, Any]) -> str:
    """For whom, when run here for another; else who runs or ran it, all attempts in order."""
    if job["role"] == "worker":
        return f"for {clean(job['submitter'])}"
    return " > ".join(clean(a["worker_name"]) for a in job["attempts"]) or "-"


def took(job: Mapping[str, Any], now: float) -> str:
    end = now if job["ended_at"] is None else job["ended_at"]
    seconds = max(end - job["started_at"], 0)
    return f"{seconds:.1f}s" if seconds < 60 else age(seconds)


def job_rows(jobs: Sequence[Mapping[str, Any]], *, now: float) -> Grid:
    """A line a job."""
    table = grid("JOB", "STATE", "MODEL", "WHERE", "TOKENS", "TOOK", "AGE", right=(4, 5, 6), wide=(2, 3))
    for j in jobs:
        table.add_row(
            short_job(j["id"]),
            styled(j["state"]),
            clean(j["model"]) or clean(j["kind"]),
            where(j),
            str(j["completion_tokens"]),
            took(j, now),
            age(now - j["started_at"]),
        )
    return table


def job_table(jobs: Sequence[Mapping[str, Any]], *, now: float) -> RenderableType:
    """Running and recent jobs, newest first; a word when there are none."""
    return job_rows(jobs, now=now) if jobs else dim("no jobs yet: mesh run starts one")


def job_detail(job: Mapping[str, Any], *, now: float) -> RenderableType:
    """One job: what it was, and each attempt with its worker, tokens, end and gap."""
    facts = grid("", "")
    tokens = f"{job['prompt_tokens']} in, {job['completion_tokens']} out"
    for key, value in (
        ("model", clean(job["model"]) or "-"),
        ("state", styled(job["state"])),
        ("finish", clean(job["finish"]) or "-"),
        ("tokens", tokens),
        ("took", took(job, now)),
        ("started", ago(now - job["started_at"])),
        ("sent by", clean(job["submitter"]) or "-"),
    ):
        facts.add_row(dim(key), value)
    parts: list[RenderableType] = [heading(clean(job["id"])), facts]
    if job["attempts"]:
        parts += [Text(""), heading("Attempts"), _attempts(job)]
    return Group(*parts)


def _attempts(job: Mapping[str, Any]) -> Grid:
    table = grid("#", "WORKER", "TOKENS", "GAP", "OUTCOME", right=(0, 2, 3), wide=(1, 4))
    for a in job["attempts"]:
        gap = "-" if a["gap_ms"] is None else f"{a['gap_ms']:.0f} ms"
        worker = clean(a["worker_name"] or a["worker"])
        table.add_row(str(a["number"]), worker, str(a["tokens"]), gap, styled(a["outcome"] or "running"))
    return table
