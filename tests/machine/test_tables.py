"""Every state of every machine answers every event; every machine tells its story."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, get_args

import pytest

from meshd.machine import execution, membership, submission
from meshd.machine.execution_events import RunEvent
from meshd.machine.membership_events import PeerEvent
from meshd.machine.submission_events import Heartbeat, SubmissionEvent, Submitted
from meshd.machine.table import Ignored, Story, unanswered
from tests.policy.make import job_id

MACHINES: list[tuple[dict[Any, Any], type[StrEnum], tuple[type, ...]]] = [
    (submission.TABLE, submission.State, get_args(SubmissionEvent)),
    (execution.TABLE, execution.State, get_args(RunEvent)),
    (membership.TABLE, membership.State, get_args(PeerEvent)),
]


@pytest.mark.parametrize(("table", "states", "events"), MACHINES)
def test_every_case_is_answered(table: dict[Any, Any], states: type[StrEnum], events: tuple[type, ...]) -> None:
    assert unanswered(table, states, events) == []
    assert len(table) == len(list(states)) * len(events), "the table answers cases that do not exist"
    assert all(rule.reason for rule in table.values() if isinstance(rule, Ignored))


def test_a_missing_case_is_found() -> None:
    table, states, events = MACHINES[0]
    short = dict(table)
    del short[submission.State.WAITING, Heartbeat]
    assert unanswered(short, states, events) == [(submission.State.WAITING, Heartbeat)]


def test_story_is_bounded_counts_repeats_and_filters() -> None:
    story = Story(entries=3)
    for at in range(5):
        story.record(at, "a", "new", Submitted(), "new", Ignored("again"))
    assert [(e.count, e.ignored) for e in story.of("a")] == [(5, "again")]
    for name in "bcd":
        story.record(9, name, "new", Submitted(), "placing", [Submitted()])
    assert [e.subject for e in story.of()] == ["b", "c", "d"]
    assert story.of("a") == () and str(story.of("d")[0]) == "9.000 new -> placing: Submitted; Submitted"


def test_story_never_holds_text() -> None:
    from meshd.core.ids import AttemptId
    from meshd.machine.submission_events import Tokens
    from meshd.machine.table import describe
    from tests.policy.make import token

    assert "secret" not in describe(Tokens(AttemptId(job_id(), 1), (token(0, b"secret"),)))
