"""The daemon program, run as a child: offline operations, and the daemon itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Final

from mesh_cli.failure import Failure
from mesh_cli.home import Home

PROGRAM: tuple[str, ...] = (sys.executable, "-P", "-m", "meshd.app")
"""-P: a file called meshd in the working directory is not meshd."""

OFFLINE_TIMEOUT_S: Final = 60.0
"""Enrolment dials another machine and opens a key with a slow hash."""


def command_line(home: Home, *operation: str) -> list[str]:
    """The daemon program's arguments for one operation on ``home``."""
    return [*PROGRAM, "--home", str(home.path), *operation]


def offline(home: Home, *operation: str, stdin: str = "", timeout_s: float = OFFLINE_TIMEOUT_S) -> dict[str, Any]:
    """Run one offline operation to its end and return its JSON object. Secrets go in by ``stdin``, never as
    arguments. Failure with the operation's own code, or timeout, or mesh_error when it said nothing sensible."""
    try:
        done = subprocess.run(
            command_line(home, *operation),
            input=stdin.encode("utf-8", "surrogateescape"),
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failure("timeout", f"{operation[0]} did not end within {timeout_s:g} s") from None
    answer = last_object(done.stdout) or last_object(done.stderr)
    if answer is not None and answer.get("ok") is True and done.returncode == 0:
        return answer
    raise failed(answer, operation[0], done.stderr, done.returncode)


def failed(answer: dict[str, Any] | None, operation: str, log: bytes, status: int) -> Failure:
    """The Failure that the program printed; else one that repeats its last line."""
    if answer is not None and answer.get("ok") is False and isinstance(answer.get("message"), str):
        return Failure(str(answer.get("code", "mesh_error")), answer["message"], hint=str(answer.get("hint") or ""))
    lines = log.decode("utf-8", "replace").strip().splitlines()
    said = f"; its last words: {lines[-1][-200:]}" if lines else ""
    return Failure("mesh_error", f"meshd {operation} ended with status {status} and no answer{said}")


def last_object(output: bytes) -> dict[str, Any] | None:
    """The JSON object on the last line of ``output`` that is one; None without."""
    for line in reversed(output.decode("utf-8", "replace").splitlines()):
        if line.startswith("{"):
            try:
                data = json.loads(line)
            except ValueError:
                continue
            if isinstance(data, dict):
                return data
    return None


def start(home: Home) -> tuple[subprocess.Popen[bytes], int]:
    """Start the daemon detached, its output at the end of HOME/daemon.log. Returns it and where its part of the
    log begins. Failure home_unusable when the log cannot be opened."""
    try:
        log = os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failure("home_unusable", f"cannot write {home.log}: {error.strerror}") from None
    try:
        begin = os.fstat(log).st_size
        child = subprocess.Popen(
            command_line(home, "run"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home.path,
            start_new_session=True,
        )
    finally:
        os.close(log)
    return child, begin


def log_since(home: Home, begin: int) -> bytes:
    """The end of the daemon's log, from ``begin`` on, at most 64 KiB."""
    try:
        with home.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(begin, end - 64 * 1024))
            return file.read()
    except OSError:
        return b""
