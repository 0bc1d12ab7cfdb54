"""Drawing tokens: greedy, filters, penalties, and randomness that is a function of seed and index."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from meshd.core.generation import Sampling
from meshd.engine.sampling import Draw, Logits, uniform


def logits(*values: float) -> Logits:
    return np.array(values, dtype=np.float32)


def spread(sampling: dict[str, float], values: tuple[float, ...], count: int = 4000) -> Counter[int]:
    draw = Draw(Sampling(seed=3, **sampling), [])  # type: ignore[arg-type]
    return Counter(draw.next(logits(*values)) for _ in range(count))


def test_uniform_is_fixed_for_all_time() -> None:
    """Golden numbers: a changed function would make resumed answers of older builds drift."""
    assert uniform(0, 0) == 0.321543039748194
    assert uniform(2**63 - 1, 999_999) == 0.4210569652353846


def test_temperature_zero_takes_the_largest() -> None:
    assert [Draw(Sampling(temperature=0), []).next(logits(1, 5, 4)) for _ in range(3)] == [1, 1, 1]


def test_frequencies_follow_the_softmax() -> None:
    counts = spread({}, (0.0, np.log(3.0)))
    assert 0.72 < counts[1] / 4000 < 0.78


def test_a_high_temperature_flattens() -> None:
    counts = spread({"temperature": 5}, (0.0, np.log(3.0)))
    assert 0.52 < counts[1] / 4000 < 0.59


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_p": 0.6}, {1, 3}),
        ({"top_p": 0.0}, {3}),
        ({"min_p": 0.55}, {3}),
        ({"min_p": 0.3}, {1, 3}),
        ({"top_k": 3, "min_p": 0.3}, {1, 3}),
    ],
)
def test_filters_keep_only_the_likely(sampling: dict[str, float], allowed: set[int]) -> None:
    values = tuple(float(np.log(p)) for p in (0.1, 0.3, 0.02, 0.58))
    assert set(spread(sampling, values)) == allowed


def test_top_p_in_a_large_flat_vocabulary_reaches_beyond_the_first_guess() -> None:
    draw = Draw(Sampling(top_p=0.5, seed=1), [])
    values = np.linspace(0, 0.001, 4000, dtype=np.float32)
    drawn = {draw.next(values.copy()) for _ in range(300)}
    assert min(drawn) >= 1900
    assert len(drawn) > 200


def test_penalties_count_the_delivered_tokens_too() -> None:
    sampling = Sampling(temperature=0, frequency_penalty=0.5, presence_penalty=0.2)
    fresh, resumed = Draw(sampling, []), Draw(sampling, [1, 1])
    assert fresh.next(logits(0.0, 1.0)) == 1
    assert resumed.next(logits(0.0, 1.0)) == 0


@pytest.mark.parametrize("cut", [1, 5, 19])
def test_a_resumed_draw_goes_on_as_the_undisturbed_one(cut: int) -> None:
    sampling = Sampling(temperature=1.3, top_p=0.95, frequency_penalty=0.3, seed=77)
    steps = np.random.default_rng(5).standard_normal((20, 500)).astype(np.float32) * 3
    whole = Draw(sampling, [])
    answer = [whole.next(step.copy()) for step in steps]
    rest = Draw(sampling, answer[:cut])
    assert [rest.next(step.copy()) for step in steps[cut:]] == answer[cut:]


def test_tiny_numeric_differences_hardly_ever_change_the_draw() -> None:
    random = np.random.default_rng(6)
    same = 0
    for seed in range(200):
        values = random.standard_normal(2000).astype(np.float32) * 3
        noisy = values + random.standard_normal(2000).astype(np.float32) * 1e-4
        a, b = (Draw(Sampling(seed=seed, top_p=0.9), []) for _ in range(2))
        same += a.next(values) == b.next(noisy)
    assert same >= 195


def test_logits_without_a_finite_maximum_are_refused() -> None:
    with pytest.raises(FloatingPointError):
        Draw(Sampling(), []).next(logits(0.0, float("nan")))
