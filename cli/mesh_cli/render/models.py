"""Models: where they are and how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from mesh_cli.render.grid import Grid, grid
from mesh_cli.render.text import clean, dim, rate, thousands

SHOWN_PLACES = 3


def places(names: Sequence[str]) -> str:
    """``here, boreas``; a long list is cut and counted."""
    more = len(names) - SHOWN_PLACES
    shown = ", ".join(clean(n) for n in names[:SHOWN_PLACES])
    return f"{shown} +{more}" if more > 0 else shown or "-"


def model_table(models: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The models of the mesh (MeshModelView)."""
    if not models:
        return dim("no models yet: mesh model add FILE")
    table = grid("MODEL", "CONTEXT", "WHERE", "DIGEST", right=(1,), wide=(0, 2))
    for m in models:
        table.add_row(clean(m["name"]), thousands(m["context_tokens"]), places(m["nodes"]), clean(m["digest"])[:12])
    return table


def model_added(model: Mapping[str, Any]) -> Text:
    """After mesh model add."""
    text = Text("added ").append(clean(model["name"]), style="bold")
    return text.append(f"  context {thousands(model['context_tokens'])}, digest {clean(model['digest'])[:12]}", "dim")


def rate_table(status: Mapping[str, Any]) -> Grid:
    """Every model in reach, where it is, and the best measured rates (prefill, generation)."""
    table = grid("MODEL", "CONTEXT", "PREFILL", "TOK/S", "WHERE", right=(1, 2, 3), wide=(0, 4))
    for (name, _digest), offers in sorted(_offers(status).items()):
        table.add_row(
            clean(name),
            thousands(max(m["context_tokens"] for _, m in offers)),
            rate(max(m["prefill_tokens_per_s"] for _, m in offers)),
            rate(max(m["generation_tokens_per_s"] for _, m in offers)),
            places([where for where, _ in offers]),
        )
    return table


def _offers(status: Mapping[str, Any]) -> dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]]:
    offers: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    owners = [("here", status["models"]), *((p["name"], p["models"]) for p in status["peers"])]
    for where, models in owners:
        for m in models:
            offers.setdefault((m["name"], m["digest"]), []).append((where, m))
    return offers
