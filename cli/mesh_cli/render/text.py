"""Small words: ages, sizes, rates, names; and from a rich picture to plain text."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType
from rich.text import Text

_STYLE = {
    "self": "green",
    "alive": "green",
    "open": "green",
    "ready": "green",
    "done": "green",
    "running": "cyan",
    "starting": "cyan",
    "loading": "cyan",
    "resting": "yellow",
    "idle": "dim",
    "busy": "cyan",
    "suspect": "yellow",
    "draining": "yellow",
    "paused": "yellow",
    "failed": "red",
    "dead": "red",
}


def as_text(renderable: RenderableType, *, width: int, colour: bool = False) -> str:
    """What a terminal of ``width`` columns would show; no trailing blanks; ends in a newline."""
    console = Console(
        file=io.StringIO(),
        width=max(width, 40),
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def clean(text: object) -> str:
    """``text`` without control characters: names and reasons come from other machines."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def styled(word: object) -> Text:
    """A state word in its colour."""
    return Text(clean(word).replace("_", " "), style=_STYLE.get(str(word), ""))


def dim(text: object) -> Text:
    """Something secondary."""
    return Text(clean(text), style="dim")


def age(seconds: float | None) -> str:
    """``3s``, ``12m``, ``5h 10m``, ``8d``; ``now`` under a second, ``-`` for never."""
    if seconds is None:
        return "-"
    s = int(max(seconds, 0))
    if s < 1:
        return "now"
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m"
    if s < 86400:
        minutes = s % 3600 // 60
        return f"{s // 3600}h {minutes}m" if minutes else f"{s // 3600}h"
    return f"{s // 86400}d"


def ago(seconds: float) -> str:
    """``3s ago``, ``now``."""
    text = age(seconds)
    return text if text == "now" else f"{text} ago"


def size(count: int | None) -> str:
    """``384 MiB``, ``7.8 GiB``; ``-`` for none."""
    if count is None:
        return "-"
    mib = count / 2**20
    if mib < 1024:
        return f"{mib:.0f} MiB"
    gib = mib / 1024
    return f"{gib:.1f} GiB" if gib < 100 else f"{gib:.0f} GiB"


def percent(part: float) -> str:
    return f"{part * 100:.0f}%"


def thousands(tokens: int) -> str:
    """Context sizes: ``32k``, ``512``."""
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)


def rate(tokens_per_s: float) -> str:
    """Tokens per second; ``-`` when not measured yet."""
    return "-" if tokens_per_s <= 0 else f"{tokens_per_s:.0f}" if tokens_per_s >= 10 else f"{tokens_per_s:.1f}"


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def short_job(job: str) -> str:
    """Enough of a job id to find it again with mesh jobs."""
    return clean(job)[:12]


def heading(title: str, note: str = "") -> Text:
    """A section's title and a dim word beside it."""
    text = Text(title, style="bold")
    return text.append(f"  {clean(note)}", style="not bold dim") if note else text
