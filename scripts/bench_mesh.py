"""Measures a mesh of real daemons on this machine and prints a table with what is aimed at; JSON goes to .bench/.

Parts: throughput (1, 4 and 16 streams, local, one hop, and llama-server where there is one, taking turns), ttft, noop,
engine (throughput, latency and memory against llama-server), gaps (SIGKILL in mid-stream, again and again), idle,
help. Without a part, all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import bench_engine
import bench_gaps
import bench_llama_server
import httpx
import psutil
from bench_load import Endpoint, median, percentile, throughput, times_to_first
from rich.console import Console
from rich.table import Table

from meshd.testing.cluster import Cluster, ClusterFailed, Node, Settings
from meshd.testing.model import MODEL_NAME, real_model

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / ".bench"
STREAMS = (1, 4, 16)
SLOTS = 16
IDLE_S = 10.0

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Row:
    """One figure: what, how much, in what, what is aimed at, and whether that holds (None: no aim)."""

    what: str
    value: float
    unit: str
    aim: str = ""
    holds: bool | None = None


@dataclass
class Bench:
    """What a run knows: options, the model, the server to compare with, and the rows so far."""

    options: argparse.Namespace
    model: Path
    llama_server: Path | None
    homes: Path
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, value: float, unit: str, aim: str = "", holds: bool | None = None) -> None:
        """Take one figure and show it at once."""
        self.rows.append(Row(what, round(value, 3), unit, aim, holds))
        console.print(f"  {what}: [bold]{value:.4g}[/bold] {unit} [dim]{aim}[/dim]")

    def note(self, words: str) -> None:
        """Say something that the figures do not, once."""
        if words not in self.notes:
            self.notes.append(words)
            console.print(f"  [yellow]{words}[/yellow]")


def shaped(slots: int = SLOTS) -> Settings:
    """Daemons whose engines run so many answers at once."""
    return {"engine": {"slots": slots}}


def pair(cluster: Cluster, bench: Bench) -> tuple[Node, Node]:
    """(worker with the model, submitter without one), connected and ready."""
    worker = cluster.found("worker")
    submitter = cluster.join("submitter", worker)
    cluster.add_model(worker, bench.model)
    cluster.share(worker, memory="8GiB")
    cluster.wait_to_meet()
    cluster.wait_for_workers(submitter, 1)
    return worker, submitter


def endpoints(bench: Bench, worker: Node, submitter: Node, stack: ExitStack) -> list[Endpoint]:
    """Local and remote through the daemons' API, and llama-server on the same file and threads."""
    found = [
        Endpoint("local", worker.api_url, worker.token),
        Endpoint("one hop", submitter.api_url, submitter.token),
    ]
    if bench.llama_server is None:
        bench.note("llama-server: skipped, none found (--with-llama-server builds one, about 15 minutes)")
        return found
    threads = os.cpu_count() or 1
    served = bench_llama_server.running(bench.llama_server, bench.model, threads, SLOTS, OUT / "llama-server.log")
    url, _ = stack.enter_context(served)
    return [*found, Endpoint("llama-server", url, extra={"cache_prompt": False})]


def measure_throughput(bench: Bench) -> None:
    """Tokens per second at 1, 4 and 16 streams, the servers taking turns; medians over the rounds."""
    with Cluster(bench.homes / "throughput", shaped()) as cluster, ExitStack() as stack:
        servers = endpoints(bench, *pair(cluster, bench), stack)
        for streams in STREAMS:
            found: dict[str, list[float]] = {server.name: [] for server in servers}
            for round_ in range(bench.options.rounds + 1):
                for server in servers:
                    rate = throughput(server, MODEL_NAME, streams, bench.options.tokens if round_ else 16)
                    if round_:
                        found[server.name].append(rate)
            rivals = median(found.get("llama-server", []))
            for name, rates in found.items():
                rate = median(rates)
                paired = name != "llama-server" and rivals == rivals
                aim = f"{rate / rivals:.2f}x of llama-server's, aim 0.95x" if paired else ""
                holds = rate >= 0.95 * rivals if paired and name == "local" else None
                bench.add(f"throughput, {streams} streams, {name}", rate, "tokens/s", aim, holds)


def measure_engine(bench: Bench) -> None:
    """The engine against llama-server, the two taking turns."""
    slots = bench_engine.SLOTS
    with Cluster(bench.homes / "engine", shaped(slots)) as cluster, ExitStack() as stack:
        node = cluster.found("alone")
        cluster.add_model(node, bench.model)
        cluster.share(node, memory="16GiB")
        cluster.wait_for_workers(node, 1)
        local = Endpoint("meshd", node.api_url, node.token)
        pids = (node.pid, *(engine["pid"] for engine in node.status()["engines"]))
        rivals = [bench_engine.Rival(local, local, pids)]
        if bench.llama_server is None:
            bench.note("llama-server: skipped, none found (--with-llama-server builds one, about 15 minutes)")
        else:
            start = partial(bench_llama_server.running, bench.llama_server, bench.model, os.cpu_count() or 1)
            url, pid = stack.enter_context(start(slots, OUT / "llama-server.log"))
            options = ("--embeddings", "--pooling", "mean")
            embeds, _ = stack.enter_context(start(4, OUT / "llama-server-embeddings.log", *options))
            theirs = Endpoint("llama-server", url), Endpoint("llama-server", embeds)
            rivals.append(bench_engine.Rival(*theirs, (pid,)))
        bench_engine.measure(rivals, bench.options.rounds, bench.options.tokens, bench.add)


def measure_ttft(bench: Bench) -> None:
    """Time to first token, one stream, taking turns."""
    with Cluster(bench.homes / "ttft", shaped()) as cluster, ExitStack() as stack:
        found = times_to_first(endpoints(bench, *pair(cluster, bench), stack), MODEL_NAME, bench.options.ttft)
    local = median(found["local"])
    for name, values in found.items():
        more = median(values) - local
        aim = f"local + {more:.1f} ms, aim + 15 ms" if name == "one hop" else ""
        bench.add(f"time to first token, {name}, p50", median(values), "ms", aim, more <= 15 if aim else None)
        bench.add(f"time to first token, {name}, p95", percentile(values, 0.95), "ms")


def measure_noop(bench: Bench) -> None:
    """A no-op task, signed, sealed, to another daemon and back; and how many a second with 16 at once."""
    with Cluster(bench.homes / "noop") as cluster:
        worker = cluster.found("worker")
        submitter = cluster.join("submitter", worker)
        cluster.share(worker)
        cluster.wait_to_meet()
        count = bench.options.noops
        submitter.post("/mesh/v1/noop", {"worker": worker.id, "count": 50})
        times = submitter.post("/mesh/v1/noop", {"worker": worker.id, "count": count}, 120)["round_trips_ms"]
        bench.add("no-op task, remote, p50", median(times), "ms", "aim 3 ms", median(times) <= 3)
        bench.add("no-op task, remote, p95", percentile(times, 0.95), "ms")
        many = submitter.post("/mesh/v1/noop", {"worker": worker.id, "count": 4 * count, "concurrency": 16}, 120)
        rate = 4 * count / many["wall_s"]
        bench.add("no-op tasks, 16 at once", rate, "tasks/s", "aim 600 tasks/s", rate >= 600)


def measure_idle(bench: Bench) -> None:
    """Memory and processor time of a daemon that is connected and does nothing."""
    with Cluster(bench.homes / "idle") as cluster:
        node = cluster.found("idle")
        cluster.join("other", node)
        cluster.wait_to_meet()
        process = psutil.Process(node.pid)
        process.cpu_percent()
        time.sleep(IDLE_S)
        cpu, memory = process.cpu_percent(), process.memory_full_info()
        bench.add("idle daemon, resident", memory.rss / 1e6, "MB", "aim 150 MB", memory.rss <= 150e6)
        bench.add("idle daemon, its own (USS)", memory.uss / 1e6, "MB")
        bench.add("idle daemon, processor", cpu, "% of a core")


def measure_gaps(bench: Bench) -> None:
    """SIGKILL the answering worker in mid-stream, bring it back, do it again."""
    with Cluster(bench.homes / "gaps") as cluster:
        found = bench_gaps.measure(cluster, bench.model, bench.options.kills, console.print)
    aim = "aim 300 ms and the replay's prefill"
    bench.add("reroute gap between tokens, p50", median(found.gaps_ms), "ms")
    bench.add("reroute gap between tokens, p95", percentile(found.gaps_ms, 0.95), "ms", aim)
    bench.add("reroute gap as the app sees it, p95", percentile(found.client_gaps_ms, 0.95), "ms")
    bench.add("kills in mid-stream", len(found.gaps_ms), "kills")
    bench.add("answers that did not finish", found.unfinished, "answers", "aim 0", found.unfinished == 0)
    bench.add("tokens lost", found.lost, "tokens", "aim 0", found.lost == 0)
    bench.add("tokens doubled", found.doubled, "tokens", "aim 0", found.doubled == 0)
    bench.add("exact answers that differ", found.different, f"of {found.exact}", "aim 0", found.different == 0)


def measure_help(bench: Bench) -> None:
    """How long a person waits for `mesh --help`."""
    command = [str(Path(sys.executable).with_name("mesh")), "--help"]
    times = []
    for _ in range(11):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append((time.perf_counter() - started) * 1000)
    bench.add("mesh --help", median(times[1:]), "ms", "aim 150 ms", median(times[1:]) <= 150)


PARTS: dict[str, Callable[[Bench], None]] = {
    "help": measure_help,
    "idle": measure_idle,
    "noop": measure_noop,
    "ttft": measure_ttft,
    "engine": measure_engine,
    "throughput": measure_throughput,
    "gaps": measure_gaps,
}


def table(bench: Bench) -> Table:
    """All rows, for a person."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    shown.add_column("measured")
    shown.add_column("", justify="right", no_wrap=True, min_width=7)
    shown.add_column("", no_wrap=True, min_width=11)
    shown.add_column("aim")
    for row in bench.rows:
        mark = {True: "[green]✓[/green] ", False: "[red]✗[/red] ", None: ""}[row.holds]
        shown.add_row(row.what, f"{row.value:,.4g}", row.unit, mark + row.aim)
    return shown


def write(bench: Bench) -> Path:
    """The JSON of this run; a copy is .bench/latest.json."""
    now = datetime.now(UTC)
    data = {
        "at": now.isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} threads, Python {platform.python_version()}",
        "model": bench.model.name,
        "load_before": os.getloadavg()[0],
        "rows": [asdict(row) for row in bench.rows],
        "notes": bench.notes,
    }
    path = OUT / f"{now:%Y%m%d-%H%M%S}.json"
    for target in (path, OUT / "latest.json"):
        target.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--kills", type=int, default=50, help="kills for the gaps (default 50, about 6 s each)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each throughput (default 3)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens an answer in throughput (default 128)")
    parser.add_argument("--ttft", type=int, default=20, help="rounds of time to first token (default 20)")
    parser.add_argument("--noops", type=int, default=500, help="no-op tasks one after the other (default 500)")
    parser.add_argument("--with-llama-server", action="store_true", help="build llama-server if there is none")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    """0 when everything could be measured (aims that are missed are shown, not failed)."""
    options = parse()
    OUT.mkdir(exist_ok=True)
    venv = OUT / "llama-venv"
    server = bench_llama_server.build(venv) if options.with_llama_server else bench_llama_server.find(venv)
    failed = False
    with tempfile.TemporaryDirectory(prefix="homes-", dir=OUT) as homes:
        bench = Bench(options, real_model(ROOT / ".demo" / "models"), server, Path(homes))
        for name, part in PARTS.items():
            if not options.parts or name in options.parts:
                console.print(f"[bold]{name}[/bold]")
                try:
                    part(bench)
                except (ClusterFailed, RuntimeError, OSError, httpx.HTTPError) as error:
                    failed = True
                    bench.note(f"{name} could not be measured: {error}")
                    console.print("\n".join(getattr(error, "__notes__", ())), style="dim", markup=False)
    path = write(bench)
    console.print()
    console.print(table(bench))
    console.print(f"[dim]{path.relative_to(ROOT)}[/dim]")
    return 1 if failed else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
