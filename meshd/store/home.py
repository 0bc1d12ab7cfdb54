"""The node's directory: what lies where, who may look into it, and that only one daemon lives in it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshd.core.errors import AlreadyDone, HomeUnusable
from meshd.store.files import check_private, write_atomic


@dataclass(frozen=True, slots=True)
class Home:
    """A node's directory and the names of what is in it. Made by `create` or `open_home`, which check it."""

    path: Path

    @property
    def node_key(self) -> Path:
        """The node's key seed."""
        return self.path / "node.key"

    @property
    def membership(self) -> Path:
        """Organisation, certificate proof and bootstrap addresses: the home is enrolled when it exists."""
        return self.path / "membership.json"

    @property
    def root_key(self) -> Path:
        """The organisation's root key, encrypted (only where the organisation was created)."""
        return self.path / "root.key"

    @property
    def issuer_key(self) -> Path:
        """The issuer's key seed (only on an issuer)."""
        return self.path / "issuer.key"

    @property
    def delegation(self) -> Path:
        """The root's signed delegation to the issuer (only on an issuer)."""
        return self.path / "issuer.delegation"

    @property
    def token(self) -> Path:
        """The token of the local API."""
        return self.path / "token"

    @property
    def database(self) -> Path:
        """Everything that changes often."""
        return self.path / "node.db"

    @property
    def daemon_file(self) -> Path:
        """Where the running daemon says how to reach it."""
        return self.path / "daemon.json"

    @property
    def lock_file(self) -> Path:
        """Held by the running daemon."""
        return self.path / "daemon.lock"

    @property
    def config(self) -> Path:
        """The owner's configuration, when there is one."""
        return self.path / "config.toml"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the home for one daemon while in the context (the lock goes with the process, however it dies).

        Raises AlreadyDone when another daemon holds it, HomeUnusable when it cannot be locked.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self.lock_file, flags, 0o600)
        except OSError as e:
            raise HomeUnusable(f"cannot use {self.lock_file}: {e.strerror}", hint="check owner and mode") from None
        try:
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyDone(f"a daemon already runs on {self.path}", hint="mesh down stops it") from None

    def announce(self, api_url: str, pid: int) -> None:
        """Say in daemon.json where this home's daemon answers."""
        write_atomic(self.daemon_file, json.dumps({"pid": pid, "api_url": api_url}).encode() + b"\n")

    def retract(self) -> None:
        """Take daemon.json away again. Idempotent."""
        self.daemon_file.unlink(missing_ok=True)


def create_home(path: Path) -> Home:
    """The home at ``path``, made (mode 0700) when it is not there yet. Raises HomeUnusable."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise HomeUnusable(f"cannot make {path}: {e.strerror}", hint="choose another place with --home DIR") from None
    return open_home(path)


def open_home(path: Path) -> Home:
    """The home at ``path``, which must exist and be private to this user; HomeUnusable with a hint otherwise."""
    try:
        status = path.stat()
        if not path.is_dir():
            raise HomeUnusable(f"{path} is no directory", hint="choose another with --home DIR")
        check_private(path, status)
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise HomeUnusable(f"{path} is not readable and writable", hint=f"chmod 700 {path}")
    except FileNotFoundError:
        raise HomeUnusable(f"there is no {path}", hint="mesh org init NAME, or mesh join") from None
    except OSError as e:
        raise HomeUnusable(f"cannot use {path}: {e.strerror}", hint="check its owner and permissions") from None
    return Home(path)
