"""The doctor's list."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from mesh_cli.checks import Check
from mesh_cli.render.text import clean, dim, plural


def check_list(checks: Sequence[Check]) -> RenderableType:
    """A line a check, a hint under each bad one, and the sum."""
    width = max((len(c["name"]) for c in checks), default=0)
    lines: list[RenderableType] = []
    for c in checks:
        mark = Text("ok  ", style="green") if c["ok"] else Text("BAD ", style="red")
        head = mark.append(f"{clean(c['name']):<{width}}  ", style="default")
        lines.append(head.append(clean(c["detail"]), style="default"))
        if c["hint"] and not c["ok"]:
            lines.append(Padding(dim(f"hint: {c['hint']}"), (0, 0, 0, width + 6)))
    bad = sum(not c["ok"] for c in checks)
    total = Text("all is well", style="green") if not bad else Text(f"{plural(bad, 'problem')} found", style="red")
    return Group(*lines, total)
