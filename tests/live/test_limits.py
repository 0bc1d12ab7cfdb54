"""The owner's limits hold on the engine itself, while it runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.live.asking import Stream, body
from tests.live.conftest import Trio, engine_pid

pytestmark = pytest.mark.live

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
TOLERANCE = 1.3
WATCHED_S = 2.0


def cpu_s(pid: int) -> float:
    """CPU time that the process has used."""
    words = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS_PER_S


@pytest.mark.parametrize("cpu", ["50%", "10%"])
def test_the_engine_keeps_to_its_part_of_the_processors(trio: Trio, cpu: str) -> None:
    part = int(cpu.rstrip("%")) / 100
    trio.bravo.post("/mesh/v1/pause")
    trio.cluster.mesh(trio.alpha, "share", "--cpu", cpu)
    cores = part * trio.alpha.status()["me"]["cpu_threads"]
    pid = engine_pid(trio.alpha)
    began_s, used_s = time.monotonic(), cpu_s(pid)
    while time.monotonic() < began_s + WATCHED_S:  # one answer after the other: a tiny model is soon done with one
        with Stream(trio.carol, body("x " * 40, max_tokens=200, exact=False)) as stream:
            stream.read()
    spent_s, passed_s = cpu_s(pid) - used_s, time.monotonic() - began_s
    print(f"--cpu {cpu}: {spent_s / passed_s:.2f} of {cores:.2f} cores in {passed_s:.1f} s")
    assert 0 < spent_s / passed_s <= cores * TOLERANCE
    assert trio.alpha.status()["share"]["threads"] == max(1, round(cores + 0.499))
