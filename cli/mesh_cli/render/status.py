"""`mesh status`: everything about this node and its mesh on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from mesh_cli.render.grid import grid
from mesh_cli.render.jobs import job_rows, running
from mesh_cli.render.models import rate_table
from mesh_cli.render.nodes import by_liveness, peer_table, why
from mesh_cli.render.share import share_line
from mesh_cli.render.text import age, clean, dim, heading, percent, plural, size, styled

SHOWN_PEERS = 8
SHOWN_JOBS = 5
CERTIFICATE_WARN_S = 3 * 86400.0


def status_screen(view: Mapping[str, Any], *, now: float) -> RenderableType:
    """The screen for a StatusView; ``now`` is wall time."""
    top = [_me(view, now), _warnings(view), _peers(view), _jobs(view, now)]
    sections = [*top, _models(view), _engines(view), _policy(view)]
    lines: list[RenderableType] = []
    for section in sections:
        if section:
            lines += [Text(""), *section] if lines else section
    return Group(*lines)


def _me(view: Mapping[str, Any], now: float) -> list[RenderableType]:
    me, org = view["me"], view["org"]
    head = Text(clean(me["name"]), style="bold").append("  ").append_text(_plain(why(me)))
    head.append(f"  {me['slots_free']} of {plural(me['slots'], 'slot')} free", style="not bold dim")
    place = " · ".join(clean(x) for x in (org["name"], me["site"], me["region"], f"up to {me['clearance']}"))
    left_s = float(org["certificate_not_after"]) - now
    card = f"certificate {age(left_s)} left" if left_s > 0 else "certificate EXPIRED"
    roles = [card, *(["issuer"] if org["issuer"] else [])]
    notes = " · ".join(roles)
    up = f"{clean(view['api_url'])} · up {age(view['uptime_s'])} · {clean(view['version'])}"
    body = [Text(place), Text(notes, style="dim"), Text(up, style="dim")]
    return [head, *(Padding(t, (0, 0, 0, 2)) for t in body)]


def _plain(text: Text) -> Text:
    return Text("").append_text(text)


def _policy(view: Mapping[str, Any]) -> list[RenderableType]:
    """Whose rules hold here: the organisation's (certificates decide while it has published none), the owner's."""
    published = view.get("policy")
    epoch = published.get("epoch") if isinstance(published, Mapping) else None
    rules = f"policy epoch {epoch}" if epoch is not None else "clearance and region, as certificates attest them"
    table = grid("", "", wide=(1,))
    table.add_row("organisation", rules)
    table.add_row("owner", _plain(share_line(view["share"])))
    return [heading("Policy"), table]


def _warnings(view: Mapping[str, Any]) -> list[RenderableType]:
    return [Text(f"! {clean(w)}", style="yellow") for w in view["warnings"]]


def _peers(view: Mapping[str, Any]) -> list[RenderableType]:
    peers = by_liveness(view["peers"])
    if not peers:
        return [heading("Peers", "none: this node is alone, and still answers")]
    alive = sum(p["liveness"] == "alive" for p in peers)
    lines: list[RenderableType] = [heading("Peers", f"{alive} of {len(peers)} alive"), peer_table(peers[:SHOWN_PEERS])]
    if len(peers) > SHOWN_PEERS:
        lines.append(dim(f"  and {len(peers) - SHOWN_PEERS} more: mesh nodes"))
    return lines


def _jobs(view: Mapping[str, Any], now: float) -> list[RenderableType]:
    jobs = [j for j in view["jobs"] if running(j)]
    if not jobs:
        return [heading("Jobs", "none running")]
    lines: list[RenderableType] = [heading("Jobs", f"{len(jobs)} running"), job_rows(jobs[:SHOWN_JOBS], now=now)]
    if len(jobs) > SHOWN_JOBS:
        lines.append(dim(f"  and {len(jobs) - SHOWN_JOBS} more: mesh jobs"))
    return lines


def _models(view: Mapping[str, Any]) -> list[RenderableType]:
    table = rate_table(view)
    return [heading("Models"), table] if table.rows else [heading("Models", "none: mesh model add FILE")]


def _engines(view: Mapping[str, Any]) -> list[RenderableType]:
    if not view["engines"]:
        return []
    table = grid("MODEL", "STATE", "PID", "MEMORY", "SLOTS", right=(2, 3, 4), wide=(0,))
    why_not: list[RenderableType] = []
    for e in view["engines"]:
        process = [str(e["pid"]), size(e["rss_bytes"]), f"{e['slots_free']}/{e['slots']}"] if e["pid"] else ["-"] * 3
        table.add_row(clean(e["model"]), _engine_state(e), *process)
        if e["reason"]:
            style = "yellow" if e["state"] == "resting" else "dim"
            why_not.append(Padding(Text(f"{clean(e['model'])}: {clean(e['reason'])}", style=style), (0, 0, 0, 2)))
    return [heading("Engines"), table, *why_not]


def _engine_state(engine: Mapping[str, Any]) -> Text:
    """What the engine does; while it loads, how much of the model is there."""
    state = styled(engine["state"])
    return state.append(f" {percent(float(engine['loaded_fraction']))}") if engine["state"] == "loading" else state
