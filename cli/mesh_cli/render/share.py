"""The owner's limits, in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from mesh_cli.render.text import dim, percent, plural, size, styled


def share_line(share: Mapping[str, Any]) -> Text:
    """``shares 50% of the CPU (4 threads), engines up to 4.0 GiB``; or why not."""
    if not share["enabled"]:
        return Text("shares nothing").append_text(dim("  mesh share changes that"))
    memory = f", engines up to {size(share['memory_bytes'])}" if share["memory_bytes"] is not None else ""
    line = Text(f"shares {percent(share['cpu'])} of the CPU ({plural(share['threads'], 'thread')}){memory}")
    if share["paused"]:
        line.append(" - ").append_text(styled("paused"))
    if share["draining"]:
        line.append(" - ").append_text(styled("draining"))
    return line
