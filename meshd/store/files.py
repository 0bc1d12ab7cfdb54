"""Small files, written whole or not at all, readable by their owner only."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from meshd.core.errors import AlreadyDone, HomeUnusable

MAX_FILE_BYTES: Final = 64 * 1024
"""Keys, certificates and descriptions are a few KiB; more is not ours."""


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` (mode 0600): after a crash there is the old file or the new one, never a part.

    Raises HomeUnusable when the disk or the permissions do not allow it.
    """
    with _translated(path):
        temporary = _write_temporary(path, data)
        os.replace(temporary, path)
        _sync_directory(path.parent)


def create_exclusive(path: Path, data: bytes) -> None:
    """Create ``path`` with ``data`` (mode 0600), whole. Raises AlreadyDone, touching nothing, when it exists."""
    with _translated(path):
        temporary = _write_temporary(path, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise AlreadyDone(f"{path} exists already") from None
        finally:
            os.unlink(temporary)
        _sync_directory(path.parent)


def read_private(path: Path) -> bytes | None:
    """The content of a file that must be the owner's alone; None when it does not exist.

    Raises HomeUnusable when it is another's, open to others, unreadable or larger than MAX_FILE_BYTES.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise _unusable(path, e) from None
    try:
        data = _read_regular(path, descriptor)
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES:
        raise HomeUnusable(f"{path} is too large", hint="move it away; it was not written by this program")
    return data


def check_private(path: Path, status: os.stat_result) -> None:
    """Return when ``path`` belongs to this user and nobody else may touch it; HomeUnusable with a hint otherwise."""
    if status.st_uid != os.geteuid():
        raise HomeUnusable(f"{path} belongs to another user", hint="run as its owner, or choose another --home DIR")
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = "700" if stat.S_ISDIR(status.st_mode) else "600"
        raise HomeUnusable(f"{path} is open to other users", hint=f"chmod {mode} {path}")


def _read_regular(path: Path, descriptor: int) -> bytes:
    with _translated(path):
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise HomeUnusable(f"{path} is no regular file", hint="move it away; it was not written by this program")
        check_private(path, status)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES + 1)


def _write_temporary(path: Path, data: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.unlink(temporary)
        raise
    return temporary


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise _unusable(path, e) from None


def _unusable(path: Path, error: OSError) -> HomeUnusable:
    return HomeUnusable(
        f"cannot use {path}: {error.strerror or error}", hint="check owner, permissions and free space of the home"
    )
