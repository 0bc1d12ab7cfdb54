"""The organisation and this node's certificate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mesh_cli.render.text import age, clean, dim


def org_card(org: Mapping[str, Any], *, now: float) -> RenderableType:
    """Name, root key, and what the certificate attests; ``now`` is wall time."""
    left_s = float(org["certificate_not_after"]) - now
    rows = {
        "root key": clean(org["root_key"]),
        # Only a running daemon says whether it may issue.
        **({"issuer": "yes, mesh invite works here" if org["issuer"] else "no"} if "issuer" in org else {}),
        "certificate": f"serial {org['certificate_serial']}, " + (f"{age(left_s)} left" if left_s > 0 else "EXPIRED"),
        "site": clean(org["site"]),
        "region": clean(org["region"]),
        "clearance": clean(org["clearance"]),
        "roles": ", ".join(clean(r) for r in org["roles"]) or "-",
    }
    # No table: a root key is compared by eye, so it is never cut short.
    lines = [dim(f"  {key:<11}  ").append(value, style="not dim") for key, value in rows.items()]
    return Group(Text(clean(org["name"]), style="bold"), *lines)


def enrolled(answer: Mapping[str, Any], word: str) -> Text:
    """After org init and join: who this machine is now, and what comes next."""
    org, name = clean(answer.get("name") or "the organisation"), answer.get("node_name")
    text = Text(f"{word} ").append(org, style="bold")
    if name:
        text.append(" as ").append(clean(name), style="bold")
    where = [clean(answer[k]) for k in ("site", "region") if answer.get(k)]
    if answer.get("clearance"):
        where.append(f"up to {clean(answer['clearance'])}")
    if where:
        text.append(f" ({', '.join(where)})")
    return text.append("\nnext: mesh up", style="dim")
