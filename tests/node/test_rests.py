"""What rests after a failure, for how long, and what ends the rest."""

from __future__ import annotations

import math

from meshd.core.errors import BeyondLimits, EngineFailed, ModelInvalid
from meshd.core.ids import ModelDigest
from meshd.node.rests import BASE_S, MAX_S, STEADY_S, Rests

A, B = ModelDigest("aa" * 32), ModelDigest("bb" * 32)
DIED = EngineFailed("the engine died (signal 11)\nsegmentation fault\nin llama.cpp")


def fail_again(rests: Rests, now_s: float) -> float:
    """How long the model rests after it failed at ``now_s``."""
    assert rests.failed(A, DIED, now_s)
    return rests.left_s(A, now_s)


def test_each_failure_doubles_the_rest_up_to_a_bound_and_others_are_not_touched() -> None:
    rests, now_s, lengths_s = Rests(), 0.0, []
    for _ in range(12):
        lengths_s.append(fail_again(rests, now_s))
        now_s += lengths_s[-1]
        assert rests.left_s(A, now_s) == 0
    assert all(BASE_S / 2 <= lengths_s[0] <= BASE_S for _ in lengths_s)
    assert lengths_s[3] > 4 * lengths_s[0] and MAX_S / 2 <= lengths_s[-1] <= MAX_S
    assert rests.left_s(B, 0.0) == 0 and rests.reason(B) == ""


def test_one_crash_that_many_report_is_one_failure_with_a_reason_of_one_line() -> None:
    rests = Rests()
    assert rests.failed(A, DIED, 0.0)
    left_s = rests.left_s(A, 0.0)
    assert not rests.failed(A, EngineFailed("something else"), 0.01)
    assert rests.left_s(A, 0.0) == left_s and rests.reason(A) == "the engine died (signal 11)"


def test_a_model_that_stayed_loaded_begins_anew_one_that_died_soon_does_not() -> None:
    rests = Rests()
    now_s = 0.0
    for _ in range(5):
        now_s += fail_again(rests, now_s)
    rests.loaded(A, now_s)
    assert rests.reason(A) == ""
    soon_s = fail_again(rests, now_s + STEADY_S / 2)
    assert soon_s > 8 * BASE_S
    now_s += STEADY_S / 2 + soon_s
    rests.loaded(A, now_s)
    assert fail_again(rests, now_s + STEADY_S) <= BASE_S


def test_a_bad_file_rests_for_good_and_limits_do_not_change_that() -> None:
    rests = Rests()
    rests.failed(A, ModelInvalid("not a GGUF file"), 0.0, "v1")
    rests.failed(B, BeyondLimits("too large"), 0.0)
    assert math.isinf(rests.left_s(A, 1e9)) and rests.broken() == {A: "v1"} and math.isfinite(rests.next_s(0.0))
    rests.forgive()
    assert rests.left_s(B, 0.0) == 0 and rests.broken() == {A: "v1"} and math.isinf(rests.next_s(0.0))
    rests.forget(A)
    assert rests.left_s(A, 0.0) == 0
