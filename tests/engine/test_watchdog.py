"""When an engine is given up, and when it is not: by silence, and by what its process does meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshd.engine.watchdog import FACTOR, LONGEST_LOOK_S, MIN_BOUND_S, Signs, Watchdog

HANG_AFTER_S = 30.0
LOOK_S = 0.2


class Clock:
    """A watchdog under a clock of the test's; ``process`` says what the process shows at a time."""

    def __init__(self, process: Callable[[float], Signs | None]) -> None:
        self.now_s = 0.0
        self.process = process
        self.dog = Watchdog(HANG_AFTER_S, 0.0)
        self.dog.begin(0.0)

    def steps(self, length_s: float, count: int = 5) -> None:
        """The engine makes steps of that length."""
        for _ in range(count):
            end_s = self.now_s + length_s
            while self.now_s < end_s:
                self.now_s += LOOK_S
                assert self.dog.look(self.now_s, lambda: spinning(self.now_s), patient=False) == ""
            self.now_s = end_s
            self.dog.heard(self.now_s, busy=True)

    def look(self, *, patient: bool = False) -> str:
        self.now_s += LOOK_S
        return self.dog.look(self.now_s, lambda: self.process(self.now_s), patient=patient)

    def silence(self, *, patient: bool = False) -> tuple[float, str]:
        """How long the engine may say nothing, and why it is given up then."""
        begun_s = self.now_s
        while self.now_s - begun_s < 2 * HANG_AFTER_S:
            if problem := self.look(patient=patient):
                return self.now_s - begun_s, problem
        return self.now_s - begun_s, ""


def stopped(now_s: float) -> Signs:
    return Signs(7.0, wants_on=False)


def spinning(now_s: float) -> Signs:
    return Signs(now_s, wants_on=True)


def starved(now_s: float) -> Signs:
    """It wants the processor and gets a hundredth of it."""
    return Signs(now_s / 100, wants_on=True)


def paging(now_s: float) -> Signs:
    return Signs(7.0, wants_on=True)


@pytest.mark.parametrize(("process", "word"), [(stopped, "stands still"), (spinning, "computes")])
def test_a_fast_model_that_hangs_is_noticed_within_seconds(process: Callable[[float], Signs], word: str) -> None:
    clock = Clock(process)
    clock.steps(0.05)
    silent_s, problem = clock.silence()
    assert word in problem and MIN_BOUND_S < silent_s < MIN_BOUND_S + 2 * LOOK_S + LONGEST_LOOK_S


@pytest.mark.parametrize(("process", "word"), [(stopped, "stands still"), (spinning, "computes")])
def test_a_slow_model_has_many_times_its_longest_step(process: Callable[[float], Signs], word: str) -> None:
    clock = Clock(process)
    clock.steps(2.0)
    silent_s, problem = clock.silence()
    assert word in problem and FACTOR * 2.0 < silent_s < FACTOR * 2.0 + 2.0


def test_the_first_step_is_judged_by_what_was_measured_when_it_was_loaded() -> None:
    clock = Clock(stopped)
    clock.dog.expect(1.5)
    silent_s, _ = clock.silence()
    assert silent_s > FACTOR * 1.5


def test_fewer_processors_mean_longer_steps_and_more_do_not_mean_less_patience() -> None:
    clock = Clock(spinning)
    clock.steps(1.0)
    bound_s = clock.dog.bound_s
    clock.dog.stretch(1 / 4)
    assert clock.dog.bound_s == bound_s
    clock.dog.stretch(2)
    assert clock.dog.bound_s == 2 * bound_s


@pytest.mark.parametrize("process", [starved, paging])
def test_who_only_gets_no_processor_or_waits_for_the_disk_has_all_the_time_there_is(
    process: Callable[[float], Signs],
) -> None:
    clock = Clock(process)
    clock.steps(0.05)
    silent_s, problem = clock.silence()
    assert silent_s == pytest.approx(HANG_AFTER_S, abs=2 * LOOK_S) and "no progress" in problem


def test_preparing_a_request_may_compute_for_long_but_not_stand_still() -> None:
    clock = Clock(spinning)
    clock.steps(0.05)
    assert clock.silence(patient=True)[0] == pytest.approx(HANG_AFTER_S, abs=2 * LOOK_S)
    clock = Clock(stopped)
    clock.steps(0.05)
    assert clock.silence(patient=True)[0] < MIN_BOUND_S + 2 * LOOK_S + LONGEST_LOOK_S


def test_time_in_which_we_stood_still_ourselves_is_not_the_engines_silence() -> None:
    clock = Clock(stopped)
    clock.steps(0.05)
    clock.now_s += 3600
    assert clock.look() == ""
    clock.dog.heard(clock.now_s, busy=True)
    assert clock.dog.bound_s <= FACTOR * 2 * LONGEST_LOOK_S, "nor is it a long step"


def test_the_longest_step_fades() -> None:
    clock = Clock(spinning)
    clock.steps(2.0, count=1)
    assert clock.dog.bound_s > 15
    clock.steps(0.05, count=200)
    assert clock.dog.bound_s == MIN_BOUND_S


def test_a_process_that_cannot_be_seen_has_until_the_end() -> None:
    clock = Clock(lambda now_s: None)
    assert clock.silence()[0] == pytest.approx(HANG_AFTER_S, abs=2 * LOOK_S)
