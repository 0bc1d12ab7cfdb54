"""The simulated world: whatever dies, freezes or is cut off, no job is lost.

Another world: MESHD_WORLD_SEED=123 pytest tests/world -k "two_hundred or small". A failure prints the command that
replays it alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from meshd.core.task import DeclineReason
from meshd.machine import submission
from meshd.machine import submission_events as ev
from meshd.machine.membership import Membership
from meshd.machine.submission import Submission
from meshd.machine.table import Ignored
from meshd.policy.replay import Replays
from meshd.testing.plan import Settings, expected, faults
from meshd.testing.world import Report, World, main, simulate

SEED = int(os.environ.get("MESHD_WORLD_SEED", "1"))
SMALL = Settings(nodes=16, jobs=60, kill=0.25, busy_s=6.0, quiet_s=15.5)
HARSH = replace(SMALL, nodes=12, kill=0.4, restart=0.8, freeze=0.3)


def good(settings: Settings) -> Report:
    report = simulate(settings)
    assert not report.problems, str(report)
    return report


def test_two_hundred_nodes_a_fifth_killed_no_job_lost() -> None:
    report = good(Settings(seed=SEED, nodes=200, jobs=220, kill=0.2))
    assert report.outcomes["complete"] >= 150, str(report)
    assert report.reroutes >= 3, "a world in which nothing happens proves nothing"


@pytest.mark.parametrize("seed", range(SEED + 1000, SEED + 1004))
def test_small_worlds_of_many_kinds(seed: int) -> None:
    good(replace(SMALL, seed=seed))


def test_a_seed_replays_exactly() -> None:
    settings = replace(SMALL, nodes=8, seed=SEED + 2000, quiet_s=1.0)
    first, again = World(settings).run(), World(settings).run()
    assert (first.trace, first.steps, first.messages) == (again.trace, again.steps, again.messages)
    assert World(replace(settings, seed=SEED + 2001)).run().trace != first.trace


def test_faults_of_every_kind_occur() -> None:
    assert len({f.kind for f in faults(Settings(seed=SEED))}) == 5


def test_command_line_prints_how_to_replay(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--nodes", "6", "--jobs", "5", "--kill", "0"]) == 0
    assert "seed 3: 6 nodes, 5 jobs" in capsys.readouterr().out


def test_the_printed_command_replays_exactly_this_world(capsys: pytest.CaptureFixture[str]) -> None:
    odd = Settings(seed=4, nodes=5, jobs=6, kill=0.2, freeze=0.2, cut=0.0, busy_s=3.0, quiet_s=15.5)
    assert main(odd.command().split()[3:]) == 0
    assert simulate(odd).trace in capsys.readouterr().out


def _report_with(monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]) -> Report:
    change(monkeypatch)
    return simulate(replace(HARSH, seed=SEED + 3000))


def _refuses_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replays, "check", lambda *_: DeclineReason.REPLAYED)


def _starts_over_and_repeats(patch: pytest.MonkeyPatch) -> None:
    """Neither resumes after what was delivered nor drops what the app has already."""
    placed = Submission._placed

    def from_scratch(self: Submission, event: ev.Placed, now_s: float) -> list[ev.SubmissionEffect]:
        (offer,) = placed(self, event, now_s)
        assert isinstance(offer, ev.Offer)
        return [replace(offer, delivered=())]

    patch.setitem(submission.TABLE, (submission.State.PLACING, ev.Placed), from_scratch)
    patch.setattr(Submission, "_in_order", lambda self, tokens: (list(tokens), False))
    patch.setattr(Submission, "check_invariants", lambda self: None)


def _trusts_the_frozen(patch: pytest.MonkeyPatch) -> None:
    """Knows neither silence nor suspicion nor a lost connection."""
    patch.setattr(Submission, "next_deadline", lambda self: None)
    for state in (submission.State.OFFERING, submission.State.ACCEPTED, submission.State.RUNNING):
        for event in (ev.Suspected, ev.Lost, ev.Tick):
            patch.setitem(submission.TABLE, (state, event), Ignored("blind"))


def _never_forgets(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Membership, "next_deadline", lambda self: None)
    patch.setattr(Membership, "_tick", lambda self, now_s: [])
    patch.setattr(Membership, "check_invariants", lambda self: None)


@pytest.mark.parametrize("change", [_refuses_everything, _starts_over_and_repeats, _trusts_the_frozen, _never_forgets])
def test_the_world_notices_when_a_rule_is_missing(
    change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = _report_with(monkeypatch, change)
    assert report.problems and report.settings.command() in str(report)


def test_the_plain_answer_stops_before_its_stop_string() -> None:
    world = World(replace(SMALL, seed=SEED))
    world.run()
    stopped = [app for _, app in world.jobs if app.job.generation is not None and app.job.generation.stop]
    assert any(expected(a.job).text != "".join(t.piece.decode() for t in a.tokens) for a in stopped)
