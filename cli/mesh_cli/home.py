"""The node's directory as the client sees it: where the daemon answers, and the token it wants."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from mesh_cli.failure import Failure

_MAX_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon as HOME/daemon.json describes it."""

    pid: int
    api_url: str


@dataclass(frozen=True, slots=True)
class Home:
    """One node's directory. Nothing here creates it: that is the daemon's work."""

    path: Path

    @property
    def log(self) -> Path:
        return self.path / "daemon.log"

    def daemon(self) -> Daemon:
        """The daemon that says it runs here. Failure not_enrolled (no such directory), not_running (no live
        daemon), home_unusable (unreadable or nonsense)."""
        text = self._read("daemon.json")
        if text is None:
            raise self._absent()
        found = _parse_daemon(text)
        if found is None:
            raise Failure("home_unusable", f"{self.path / 'daemon.json'} is damaged", hint="mesh up writes it anew")
        if not pid_alive(found.pid):
            raise not_running(self.path)
        return found

    def token(self) -> str:
        """The API token. Failure home_unusable when it cannot be read."""
        text = self._read("token")
        if not text or not text.strip().isascii():
            raise Failure("home_unusable", f"no token in {self.path}", hint="mesh token rotate makes a new one")
        return text.strip()

    def _absent(self) -> Failure:
        if self.path.is_dir():
            return not_running(self.path)
        return Failure("not_enrolled", f"no node in {self.path}", hint="mesh org init NAME, or mesh join")

    def _read(self, name: str) -> str | None:
        path = self.path / name
        try:
            with path.open("rb") as file:
                return file.read(_MAX_FILE_BYTES).decode("utf-8", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failure(
                "home_unusable",
                f"cannot read {path}: {error.strerror or error}",
                hint="is it your home? choose another with --home DIR",
            ) from None


def locate(option: str | None) -> Home:
    """The home that --home, $MESH_HOME or the default names, as an absolute path."""
    text = option or os.environ.get("MESH_HOME") or "~/.meshd"
    return Home(Path(text).expanduser().absolute())


def not_running(home: Path) -> Failure:
    """No daemon answers for ``home``."""
    return Failure("not_running", f"no daemon is running for {home}", hint="start it with: mesh up")


def pid_alive(pid: int) -> bool:
    """Whether process ``pid`` still runs; a zombie, whose parent has not looked yet, does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[:1] != ["Z"]


def _parse_daemon(text: str) -> Daemon | None:
    try:
        data = json.loads(text)
    except ValueError:
        return None
    if not isinstance(data, dict):
        return None
    pid, url = data.get("pid"), data.get("api_url")
    return Daemon(pid, url) if isinstance(pid, int) and pid > 0 and isinstance(url, str) else None
