"""Machines of the mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mesh_cli.render.grid import Grid, grid
from mesh_cli.render.text import age, clean, dim, plural, styled

_ORDER = {"self": 0, "alive": 1, "suspect": 2}


def by_liveness(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """This node first, then the alive, then the suspect; by name among equals."""
    return sorted(nodes, key=lambda n: (_ORDER.get(n["liveness"], 3), n["name"], n["id"]))


def seen(node: Mapping[str, Any]) -> str:
    """When it last spoke to us; in brackets when others told us of it; nothing for ourselves."""
    if node["liveness"] == "self":
        return "-"
    if node["talked_age_s"] is None:
        return f"({age(node['heard_age_s'])})"
    return age(node["talked_age_s"])


def why(node: Mapping[str, Any]) -> Text:
    """The state and its reason: ``paused: the owner is back``."""
    state = styled(node["state"])
    reason = clean(node["reason"])
    plain = str(node["state"]).replace("_", " ")
    return state if not reason or reason == plain else state.append(f": {reason}", style="default")


def model_names(node: Mapping[str, Any]) -> str:
    return ", ".join(clean(m["name"]) for m in node["models"]) or "-"


def peer_table(nodes: Sequence[Mapping[str, Any]]) -> Grid:
    """A short line a peer: name, liveness, last seen, state and why, models."""
    table = grid("NAME", "LIVE", "SEEN", "STATE", "MODELS", right=(2,), wide=(3, 4))
    for n in nodes:
        table.add_row(clean(n["name"]), styled(n["liveness"]), seen(n), why(n), model_names(n))
    return table


def node_table(nodes: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Everything worth a column, one line a machine, and a count."""
    table = grid("NAME", "LIVE", "SEEN", "REGION", "CLEARS", "SLOTS", "STATE", "MODELS", right=(2, 5), wide=(3, 6, 7))
    for n in by_liveness(nodes):
        slots = f"{n['slots_free']}/{n['slots']}"
        table.add_row(
            clean(n["name"]),
            styled(n["liveness"]),
            seen(n),
            clean(n["region"]),
            clean(n["clearance"]),
            slots,
            why(n),
            model_names(n),
        )
    alive = sum(n["liveness"] in ("self", "alive") for n in nodes)
    return Group(table, dim(f"  {plural(len(nodes), 'node')}, {alive} alive"))
