"""Upstreams: which servers a node stands in front of, and how they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mesh_cli.render.grid import grid
from mesh_cli.render.text import clean, dim, rate, styled, thousands

_LOCAL = ("http://127.", "http://localhost", "http://[::1]")


def upstream_table(upstreams: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A line for each (UpstreamView); why one rests stands below."""
    if not upstreams:
        return dim("no upstreams: mesh upstream add URL --model NAME")
    table = grid("NAME", "STATE", "SERVER", "CLASS", "CONTEXT", "SLOTS", "TOK/S", right=(4, 5, 6), wide=(0, 2))
    for u in upstreams:
        table.add_row(
            clean(u["name"]),
            styled(u["state"]),
            clean(u["url"]),
            f"up to {clean(u['class_max'])}",
            _context(u),
            f"{u['slots_free']}/{u['slots']}",
            rate(u["generation_tokens_per_s"]),
        )
    reasons = [dim(f"{u['name']}: {u['reason']}") for u in upstreams if u["reason"]]
    return Group(table, *reasons) if reasons else table


def _context(upstream: Mapping[str, Any]) -> str:
    return thousands(upstream["context_tokens"]) if upstream["context_tokens"] else "-"


def upstream_added(upstream: Mapping[str, Any]) -> RenderableType:
    """After mesh upstream add: what the server showed that it can do, and what to beware of."""
    text = Text("added ").append(clean(upstream["name"]), style="bold")
    does = [*upstream["prompts"], *(["embeddings"] if "embed" in upstream["abilities"] else [])]
    does += ["JSON schemas"] if upstream["formats"] else []
    text.append(f"  {', '.join(map(clean, does))}; up to {clean(upstream['class_max'])}", "dim")
    lines: list[RenderableType] = [text]
    if "generate" in upstream["abilities"] and "resume" not in upstream["abilities"]:
        lines.append(dim("an answer that breaks off there cannot go on: the server does not continue what was said"))
    if upstream["url"].startswith("http://") and not upstream["url"].startswith(_LOCAL):
        lines.append(Text("! the way to that server is not encrypted: prompts and key can be read on it", "yellow"))
    return Group(*lines)
