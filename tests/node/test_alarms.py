"""One task keeps time for many: each is woken when its own deadline has come, and only then."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from meshd.node.timer import STUCK_PAUSE_S, Alarms


@dataclass(eq=False)
class Sleeper:
    """Sleeps until the first of its deadlines; each waking takes one away, unless it is stuck."""

    deadlines: list[float]
    stuck: bool = False
    woken: list[float] = field(default_factory=list)

    def next_deadline(self) -> float | None:
        return self.deadlines[0] if self.deadlines else None

    def wake(self) -> None:
        self.woken.append(trio.current_time())
        if not self.stuck:
            self.deadlines.pop(0)


async def _run(alarms: Alarms, for_s: float) -> None:
    with trio.move_on_after(for_s):
        await alarms.run()


@pytest.mark.mock_clock
async def test_each_is_woken_at_its_own_deadlines() -> None:
    now_s = trio.current_time()
    alarms = Alarms()
    early, late = Sleeper([now_s + 1, now_s + 3]), Sleeper([now_s + 2])
    for sleeper in (late, early):
        alarms.poke(sleeper)
    await _run(alarms, 10)
    assert [round(t - now_s, 6) for t in early.woken] == [1, 3]
    assert [round(t - now_s, 6) for t in late.woken] == [2]


@pytest.mark.mock_clock
async def test_a_deadline_that_moved_later_wakes_nobody_early() -> None:
    now_s = trio.current_time()
    alarms, sleeper = Alarms(), Sleeper([now_s + 1])
    alarms.poke(sleeper)
    sleeper.deadlines = [now_s + 5]
    await _run(alarms, 10)
    assert [round(t - now_s, 6) for t in sleeper.woken] == [5]


@pytest.mark.mock_clock
async def test_a_deadline_that_moved_earlier_is_kept_after_a_poke() -> None:
    now_s = trio.current_time()
    alarms, sleeper = Alarms(), Sleeper([now_s + 8])
    alarms.poke(sleeper)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run, alarms, 9.5)
        await trio.testing.wait_all_tasks_blocked()
        sleeper.deadlines = [now_s + 2, now_s + 8]
        alarms.poke(sleeper)
    assert [round(t - now_s, 6) for t in sleeper.woken] == [2, 8]


@pytest.mark.mock_clock
async def test_who_is_forgotten_sleeps_on() -> None:
    now_s = trio.current_time()
    alarms, gone, other = Alarms(), Sleeper([now_s + 1]), Sleeper([now_s + 2])
    for sleeper in (gone, other):
        alarms.poke(sleeper)
    alarms.forget(gone)
    await _run(alarms, 5)
    assert gone.woken == [] and len(other.woken) == 1


@pytest.mark.mock_clock
async def test_a_stuck_sleeper_does_not_keep_the_loop_busy() -> None:
    now_s = trio.current_time()
    alarms, stuck, other = Alarms(), Sleeper([now_s], stuck=True), Sleeper([now_s + 0.5])
    for sleeper in (stuck, other):
        alarms.poke(sleeper)
    await _run(alarms, 1)
    assert len(stuck.woken) <= 1 / STUCK_PAUSE_S + 2
    assert len(other.woken) == 1
