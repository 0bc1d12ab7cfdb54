"""The main job on real input: three daemons, a real model, and an answer that survives the SIGKILL of its worker.

Exits 0 only when everything it says was checked: the answer finished, the worker that was giving it died by SIGKILL,
another one went on, no token was lost or doubled, and the text is the one of an undisturbed run.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from meshd.testing.cluster import Cluster, ClusterFailed, Node, View, running_worker, until
from meshd.testing.model import MODEL_NAME, NoModel, expected_sha256, real_model

ROOT = Path(__file__).resolve().parents[1]
# The model is a base model, trained to go on and not to answer, so it is shown one answer first.
MESSAGES: Any = [
    {"role": "user", "content": "How is bread made?"},
    {
        "role": "assistant",
        "content": "Bread is made from flour, water, salt and yeast. The baker mixes them into a dough and kneads it "
        "until it is smooth and elastic. Then the dough rests in a warm place, where the yeast feeds on the sugars in "
        "the flour and fills the dough with small bubbles of gas. After an hour or two it has doubled in size. The "
        "baker folds it, shapes it into loaves, lets it rise once more, and bakes it in a hot oven until the crust is "
        "golden brown. Good bread needs little more than patience, and people have made it in this way for thousands "
        "of years.",
    },
    {"role": "user", "content": "How do bees make honey?"},
]
MAX_TOKENS = 160
KILL_AFTER_TOKENS = 28
BAR_COLUMNS = 60
PATIENCE_S = 120.0

console = Console(highlight=False)


@dataclass
class Run:
    """One answer as the app saw it: pieces with their times (s since the request), and what came at the end."""

    pieces: list[tuple[float, str]] = field(default_factory=list)
    finish: str | None = None
    tokens: int = 0
    job: str = ""
    receipt: str = ""
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(piece for _, piece in self.pieces)


@dataclass
class Cut:
    """Where the worker was killed: after how many pieces, at which time, who it was."""

    pieces: int
    at_s: float
    worker: Node


@contextmanager
def step(title: str) -> Iterator[list[str]]:
    """Show a spinner with the time while the block runs, then one line; the block may append details to it."""
    started = time.monotonic()
    details: list[str] = []
    with console.status(f"{title} ..."):
        yield details
    more = "".join(f"  [dim]{escape(detail)}[/dim]" for detail in details)
    console.print(f"[green]✓[/green] {title}{more}  [dim]{time.monotonic() - started:.1f} s[/dim]")


def ask(node: Node) -> tuple[str, openai.Stream[Any]]:
    """(job id, stream) of a greedy chat completion in exact mode, by the unmodified openai client."""
    client = openai.OpenAI(base_url=f"{node.api_url}/v1", api_key=node.token, max_retries=0, timeout=PATIENCE_S)
    answer = client.chat.completions.with_raw_response.create(
        model=MODEL_NAME,
        messages=MESSAGES,
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"mesh": {"exact": True}},
    )
    return answer.headers["X-Mesh-Job"], answer.parse()


def read(node: Node, cluster: Cluster, *, kill: bool) -> tuple[Run, Cut | None]:
    """Read one answer and print it as it comes; with ``kill``, SIGKILL whoever is giving it in its middle."""
    run, cut = Run(), None
    started = time.monotonic()
    run.job, stream = ask(node)
    for chunk in stream:
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            run.pieces.append((time.monotonic() - started, piece))
            console.print(Text(piece, style="cyan" if cut is None else "green"), end="", soft_wrap=True)
            if kill and cut is None and len(run.pieces) >= KILL_AFTER_TOKENS:
                cut = kill_worker(node, cluster, run, started)
        if chunk.choices and chunk.choices[0].finish_reason:
            run.finish = chunk.choices[0].finish_reason
        if chunk.usage:
            run.tokens = chunk.usage.completion_tokens
        run.receipt = (chunk.model_extra or {}).get("mesh", {}).get("receipt") or run.receipt
    run.seconds = time.monotonic() - started
    console.print()
    return run, cut


def kill_worker(node: Node, cluster: Cluster, run: Run, started: float) -> Cut:
    """SIGKILL the daemon that runs the job's attempt now."""
    worker = cluster.by_id(until(lambda: running_worker(node, run.job), 2.0, "the job has a worker"))
    cut = Cut(len(run.pieces), time.monotonic() - started, worker)
    cluster.kill(worker)
    console.print(Text(f" ⚡ SIGKILL {worker.name} ⚡ ", style="bold white on red"), end="", soft_wrap=True)
    return cut


def build(cluster: Cluster, model: Path) -> Node:
    """Organisation, three daemons, two of them workers; the third, whose app asks, is returned."""
    with step("Organisation [bold]harbour[/bold] created, first machine [bold]rack-1[/bold] is up") as details:
        first = cluster.found("rack-1")
        details.append(short(first.id))
    with step("[bold]rack-2[/bold] enrolled with an invite, and up") as details:
        second = cluster.join("rack-2", first)
        details.append(short(second.id))
    with step("[bold]laptop[/bold] enrolled with an invite, and up") as details:
        third = cluster.join("laptop", first)
        details.append(short(third.id))
    for node in (first, second):
        with step(f"[bold]{node.name}[/bold] opted in and loaded the model"):
            cluster.add_model(node, model)
            cluster.share(node)
    with step("[bold]laptop[/bold] found two workers in the mesh") as details:
        cluster.wait_to_meet()
        cluster.wait_for_workers(third, 2)
        details.append("it has no model itself")
    return third


def short(node_id: str) -> str:
    """The end of a node id, which is where they differ."""
    return f"…{node_id[-8:]}"


def claims(whole: Run, broken: Run, cut: Cut | None, job: View) -> list[tuple[bool, str]]:
    """Everything that this program says, with whether it is so."""
    attempts = job["attempts"]
    killed = cut is not None and cut.worker.process is not None and cut.worker.process.returncode == -signal.SIGKILL
    name = cut.worker.name if cut else "nobody"
    went_on = len(attempts) == 2 and cut is not None and attempts[0]["worker"] == cut.worker.id
    produced = sum(attempt["tokens"] for attempt in attempts)
    return [
        (whole.finish is not None and len(whole.pieces) > KILL_AFTER_TOKENS, "the undisturbed answer finished"),
        (killed, f"{name}, which was answering, died by SIGKILL in mid-stream"),
        (went_on and attempts[1]["worker"] != attempts[0]["worker"], "another worker went on"),
        (broken.finish == whole.finish, f"the stream ended in order ({broken.finish})"),
        (broken.tokens == whole.tokens > 0, f"{broken.tokens} tokens, as many as undisturbed"),
        (produced == broken.tokens, "each token came from exactly one attempt: none lost, none twice"),
        (broken.text == whole.text, "the text is identical to the undisturbed run's"),
        (bool(broken.receipt), f"a signed receipt accounts for the end: {broken.receipt or 'none'}"),
    ]


def timeline(run: Run, cut: Cut, job: View) -> None:
    """Draw who answered when, over the time that the app saw."""
    before_s = run.pieces[cut.pieces - 1][0]
    resumed_s = next((at for at, _ in run.pieces[cut.pieces :] if at > cut.at_s), run.seconds)
    scale = BAR_COLUMNS / max(run.seconds, 0.001)
    begin, end = round(cut.at_s * scale), round(resumed_s * scale)
    first, second = job["attempts"][0], job["attempts"][1]
    width = max(len(first["worker_name"]), len(second["worker_name"])) + 1
    died = Text("█" * begin, style="cyan") + Text("✗ SIGKILL", style="bold red")
    pause = Text(" " * begin) + Text("░" * max(1, end - begin), style="yellow")
    went = pause + Text("█" * max(0, BAR_COLUMNS - end), style="green")
    axis = f"{'0 s':<{BAR_COLUMNS - 6}}{run.seconds:4.1f} s"
    console.print(Text(f"{first['worker_name']:<{width}}") + died)
    console.print(Text(f"{second['worker_name']:<{width}}") + went)
    console.print(Text(" " * width + axis, style="dim"))
    outcome = first["outcome"].replace("_", " ")
    console.print(f"[cyan]{first['worker_name']}[/cyan] gave tokens 1 to {first['tokens']}, then: {escape(outcome)}")
    console.print(f"[green]{second['worker_name']}[/green] gave tokens {first['tokens'] + 1} to {run.tokens}")
    at_daemon = f" ({second['gap_ms']:.0f} ms at the daemon)" if second["gap_ms"] is not None else ""
    replay = f"in which {first['tokens']} tokens were replayed one by one, as exact mode does"
    gap = (resumed_s - before_s) * 1000
    console.print(f"[yellow]{gap:.0f} ms[/yellow] without text{at_daemon}, {replay}\n")


def verdict(whole: Run, broken: Run, cut: Cut | None, job: View) -> bool:
    """Print what is so and what is not; whether all of it is."""
    found = claims(whole, broken, cut, job)
    for holds, words in found:
        console.print(f"{'[green]✓[/green]' if holds else '[bold red]✗[/bold red]'} {escape(words)}")
    return all(holds for holds, _ in found)


def story(cluster: Cluster, model: Path) -> bool:
    """The whole demonstration; whether everything was as claimed."""
    third = build(cluster, model)
    console.rule(f"[bold]{MESSAGES[-1]['content']}[/bold] An undisturbed answer, exact mode, greedy", style="dim")
    whole, _ = read(third, cluster, kill=False)
    console.print(f"[dim]{whole.tokens} tokens in {whole.seconds:.1f} s[/dim]")
    console.rule("[bold]The same question, and its worker is killed[/bold]", style="dim")
    broken, cut = read(third, cluster, kill=True)
    job = next(view for view in third.jobs() if view["id"] == broken.job)
    console.rule("[bold]What happened[/bold]", style="dim")
    if cut is not None and len(job["attempts"]) >= 2:
        timeline(broken, cut, job)
    return verdict(whole, broken, cut, job)


def prepare() -> Path:
    """The model file, its checksum verified."""
    with step("Gemma 3 270M, a real model") as details:
        path = real_model(ROOT / ".demo" / "models")
        details.append(f"{path.stat().st_size / 1e6:.0f} MB, SHA-256 {expected_sha256()[:8]}… verified")
    return path


def perform(homes: Path) -> bool:
    """Run the story in ``homes``; whether all was as claimed. Failures are printed, with the daemons' logs."""
    try:
        model = prepare()
        with Cluster(homes) as cluster:
            return story(cluster, model)
    except (ClusterFailed, NoModel, openai.OpenAIError, httpx.HTTPError) as error:
        console.print(f"\n[bold red]✗ {escape(str(error))}[/bold red]")
        for note in getattr(error, "__notes__", ()):
            console.print(Text(note, style="dim"))
        return False


def main() -> int:
    """0 when everything was as claimed, 1 when not, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the three homes afterwards")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    console.print(Panel("An answer that survives the machine that was giving it", style="bold", expand=False))
    base = ROOT / ".demo"
    base.mkdir(exist_ok=True)
    homes = Path(tempfile.mkdtemp(prefix="homes-", dir=base))
    try:
        good = perform(homes)
    except (KeyboardInterrupt, SystemExit) as end:
        console.print("\n[yellow]interrupted; every process was ended[/yellow]")
        shutil.rmtree(homes, ignore_errors=True)
        return 143 if isinstance(end, SystemExit) else 130
    if good and not options.keep:
        shutil.rmtree(homes, ignore_errors=True)
    else:
        console.print(f"[dim]homes and logs: {homes.relative_to(ROOT)}[/dim]")
    words = "[bold green]All as claimed" if good else "[bold red]NOT as claimed"
    console.print(f"{words}[/] [dim]in {time.monotonic() - started:.0f} s[/dim]")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
