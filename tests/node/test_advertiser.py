"""An ad tells what the machine is like now, not what it was like when the daemon started."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.core.ad import Gpu
from meshd.core.engine import MachineInfo
from meshd.core.share import Share
from meshd.node.advertiser import LOOK_INTERVAL_S, Advertiser, Self
from meshd.node.guest import Guest
from meshd.testing.fakes import FakeEngine, fake_node
from tests.node.stores import Disk, MemorySettings

MACHINE = MachineInfo(8, 2**34, 2**33, (Gpu("gpu", 2**34, 2**34),))


class Probe:
    """A machine whose GPU fills up; counts how often it is looked at."""

    def __init__(self) -> None:
        self.looks = 0

    def machine(self) -> MachineInfo:
        self.looks += 1
        return replace(MACHINE, gpus=(Gpu("gpu", 2**34, 2**34 - self.looks),))


@pytest.mark.mock_clock
async def test_the_machine_is_looked_at_again_but_not_for_every_ad() -> None:
    probe, now_s = Probe(), 1000.0
    me = Self(fake_node(1), "one", 1, "test", 4096, 4)
    guest = Guest(Share(), MemorySettings(Share(), Disk()))
    ads = Advertiser(me, guest, FakeEngine(), probe, lambda: 0, lambda: now_s, lambda: ("/ip4/127.0.0.1/tcp/1",))
    for _ in range(10):
        first = ads.ad()
    assert probe.looks == 1 and first.gpus[0].free_bytes == 2**34 - 1
    now_s += LOOK_INTERVAL_S
    assert ads.ad().gpus[0].free_bytes == 2**34 - 2
    now_s -= 3600  # a clock set back must not freeze the figures
    assert ads.ad().gpus[0].free_bytes == 2**34 - 3
