"""The home is private, whole after any crash, and has one daemon."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from meshd.core.errors import AlreadyDone, HomeUnusable
from meshd.store import files
from meshd.store.files import MAX_FILE_BYTES, create_exclusive, read_private, write_atomic
from meshd.store.home import Home, create_home, open_home

as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_home_is_its_owners_alone(tmp_path: Path) -> None:
    home = create_home(tmp_path / "a" / "b")
    assert mode_of(home.path) == 0o700
    assert create_home(home.path) == open_home(home.path) == home


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o770])
def test_a_home_open_to_others_is_refused_with_a_hint(home: Home, mode: int) -> None:
    home.path.chmod(mode)
    with pytest.raises(HomeUnusable) as caught:
        open_home(home.path)
    assert "chmod 700" in caught.value.hint


def test_a_missing_home_or_a_file_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(HomeUnusable) as caught:
        open_home(tmp_path / "none")
    assert "mesh join" in caught.value.hint
    (tmp_path / "file").touch(mode=0o600)
    for make in (open_home, create_home):
        with pytest.raises(HomeUnusable):
            make(tmp_path / "file")
    with pytest.raises(HomeUnusable):
        create_home(tmp_path / "file" / "below")


@as_user
def test_an_unreadable_home(home: Home) -> None:
    home.path.chmod(0o000)
    with pytest.raises(HomeUnusable):
        open_home(home.path)
    home.path.chmod(0o700)


def test_files_are_private_and_replaced_whole(home: Home) -> None:
    path = home.path / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert read_private(path) == b"two"
    assert mode_of(path) == 0o600
    assert [p.name for p in home.path.iterdir()] == ["file"]


def test_a_write_that_breaks_off_leaves_the_old_file(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home.path / "file"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(HomeUnusable, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in home.path.iterdir()] == ["file"]


def test_exclusive_files_are_never_overwritten(home: Home) -> None:
    path = home.path / "key"
    create_exclusive(path, b"one")
    with pytest.raises(AlreadyDone):
        create_exclusive(path, b"two")
    assert read_private(path) == b"one"
    assert [p.name for p in home.path.iterdir()] == ["key"]


def test_private_files_that_are_not(home: Home) -> None:
    path = home.path / "key"
    assert read_private(path) is None
    path.write_bytes(b"x")
    path.chmod(0o644)
    with pytest.raises(HomeUnusable) as caught:
        read_private(path)
    assert "chmod 600" in caught.value.hint
    path.chmod(0o600)
    path.write_bytes(bytes(MAX_FILE_BYTES + 1))
    with pytest.raises(HomeUnusable, match="too large"):
        read_private(path)
    path.unlink()
    path.symlink_to(home.path / "elsewhere")
    with pytest.raises(HomeUnusable):
        read_private(path)
    path.unlink()
    path.mkdir(mode=0o700)
    with pytest.raises(HomeUnusable, match="regular"):
        read_private(path)
    path.rmdir()
    os.mkfifo(path, 0o600)  # opening it must not wait for a writer either
    with pytest.raises(HomeUnusable, match="regular"):
        read_private(path)


HOLDER = """
import sys
from pathlib import Path
from meshd.store.home import open_home
with open_home(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_daemon_a_home_and_a_killed_one_frees_it(home: Home) -> None:
    command = [sys.executable, "-c", HOLDER, str(home.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(AlreadyDone, match="already runs"), home.locked():
            pass
        holder.kill()
    with home.locked():
        pass
    with home.locked():  # and it was given back in order
        pass


def test_what_the_holder_raises_is_not_mistaken_for_the_lock(home: Home) -> None:
    with pytest.raises(BlockingIOError), home.locked():
        raise BlockingIOError


def test_the_daemon_says_where_it_answers(home: Home) -> None:
    home.announce("http://127.0.0.1:4711", 123)
    assert json.loads(home.daemon_file.read_text()) == {"pid": 123, "api_url": "http://127.0.0.1:4711"}
    home.retract()
    home.retract()
    assert not home.daemon_file.exists()
