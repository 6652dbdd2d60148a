"""Paired ratios keep their word, Holm's correction keeps the family-wise error, and both agree with sums by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.evaluation.statistics import (
    holm,
    incomplete_beta,
    paired_ratio,
    seeds_needed,
    student_quantile,
    student_tail,
    upper_bound,
)

positive = st.floats(1e-3, 1e3)
pairs = st.lists(st.tuples(positive, positive), min_size=3, max_size=12)
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("p", "freedom", "t"),
    # Abramowitz and Stegun, table 26.10
    [(0.95, 1, 6.314), (0.975, 1, 12.706), (0.95, 9, 1.833), (0.975, 9, 2.262), (0.995, 9, 3.250), (0.95, 60, 1.671)],
)
def test_quantiles_of_t_are_the_tables(p, freedom, t):
    assert student_quantile(p, freedom) == pytest.approx(t, abs=6e-4)


@given(st.floats(-50, 50), st.integers(1, 200))
def test_the_tails_of_t_are_symmetric_and_t_of_one_degree_is_cauchys(t, freedom):
    assert student_tail(t, freedom) + student_tail(-t, freedom) == pytest.approx(1.0, abs=1e-12)
    assert student_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, abs=1e-12)


@given(st.floats(0.001, 0.999), st.floats(0.3, 30), st.floats(0.3, 30))
def test_the_incomplete_beta_function_has_its_symmetry(x, a, b):
    assert incomplete_beta(a, b, x) == pytest.approx(1 - incomplete_beta(b, a, 1 - x), abs=1e-10)


def test_a_paired_ratio_by_hand():
    # logs of 2, 8, 4 over 1: ln 2 · (1, 3, 2): mean 2 ln 2, standard deviation ln 2, error ln 2 / √3
    found = paired_ratio([2, 8, 4], [1, 1, 1])
    ln2, error = math.log(2), math.log(2) / math.sqrt(3)
    assert found.value == pytest.approx(4)
    assert found.low == pytest.approx(math.exp(2 * ln2 - 4.302653 * error), rel=1e-6)
    assert found.high == pytest.approx(math.exp(2 * ln2 + 4.302653 * error), rel=1e-6)
    assert found.upper == pytest.approx(math.exp(2 * ln2 + 2.919986 * error), rel=1e-6)
    # t = 2√3 on two degrees of freedom: P(T > t) = (1 − t / √(2 + t²)) / 2 = (1 − √(12/14)) / 2
    assert found.worse == pytest.approx((1 - math.sqrt(12 / 14)) / 2)
    assert found.better == pytest.approx(1 - found.worse)


@given(pairs)
def test_a_ratio_turned_over_is_its_inverse(values):
    x, y = zip(*values, strict=True)
    there, back = paired_ratio(x, y), paired_ratio(y, x)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)
    assert there.upper * back.lower == pytest.approx(1)
    assert there.better == pytest.approx(back.worse)


@given(pairs, st.floats(0.01, 100))
def test_a_ratio_has_no_unit(values, factor):
    x, y = (np.array(side) for side in zip(*values, strict=True))
    plain, scaled = paired_ratio(x, y), paired_ratio(x * factor, y * factor)
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx((plain.value, plain.low, plain.high))


@given(st.lists(positive, min_size=2, max_size=12))
def test_equal_figures_are_exactly_alike_and_neither_better_nor_worse(values):
    same = paired_ratio(values, values)
    assert (same.value, same.low, same.high, same.upper) == (1, 1, 1, 1)
    assert same.better == same.worse == 1


def test_one_seed_tells_no_interval_and_no_figure_tells_nothing():
    assert paired_ratio([2], [1]).value == pytest.approx(2)
    assert math.isnan(paired_ratio([2], [1]).upper)
    assert math.isnan(paired_ratio([1, math.nan], [1, 1]).value)
    assert math.isnan(paired_ratio([1, 0], [1, 1]).value)
    with pytest.raises(ValueError, match="as many values of both"):
        paired_ratio([1, 2], [1])


@pytest.mark.parametrize("seeds", [5, 10])
def test_intervals_cover_the_truth_as_often_as_they_say(seeds):
    """Paired figures with a common difficulty that is many times the difference, as one seed's flows have it."""
    rng = np.random.default_rng(seeds)
    runs, truth = 4000, 1.03
    hard = np.exp(rng.normal(0, 0.5, (runs, seeds)))
    x = hard * truth * np.exp(rng.normal(0, 0.02, (runs, seeds)))
    y = hard * np.exp(rng.normal(0, 0.02, (runs, seeds)))
    found = [paired_ratio(a, b) for a, b in zip(x, y, strict=True)]
    within = np.mean([r.low <= truth <= r.high for r in found])
    below = np.mean([truth <= r.upper for r in found])
    error = 4 * math.sqrt(0.05 * 0.95 / runs)  # four standard errors
    assert within == pytest.approx(0.95, abs=error)
    assert below == pytest.approx(0.95, abs=error)


def test_p_values_are_uniform_where_both_are_alike():
    rng = np.random.default_rng(3)
    p = [paired_ratio(np.exp(rng.normal(0, 0.1, 8)), np.exp(rng.normal(0, 0.1, 8))).better for _ in range(3000)]
    for level in (0.01, 0.05, 0.25, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 3000))


def test_holm_by_hand():
    # 0.01·4, then max(0.04, 0.02·3) = 0.06, max(0.06, 0.03·2) = 0.06, max(0.06, 0.04·1) = 0.06
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([math.nan, 0.01]) == pytest.approx([1.0, 0.02])
    assert holm([]) == []


@given(probabilities)
def test_holm_is_between_no_correction_and_bonferronis(p):
    adjusted = holm(p)
    assert all(a >= q for a, q in zip(adjusted, p, strict=True))
    assert all(a <= min(1, len(p) * q) + 1e-12 for a, q in zip(adjusted, p, strict=True))
    assert np.argsort(p, kind="stable")[0] == int(np.argmin(adjusted)) or adjusted[int(np.argmin(p))] == min(adjusted)


@given(probabilities)
def test_holm_decides_as_its_procedure_does(p):
    """Step by step: reject the smallest while it is below α over the number that is left."""
    left, rejected = sorted(range(len(p)), key=p.__getitem__), set()
    while left and p[left[0]] * len(left) < 0.05:
        rejected.add(left.pop(0))
    assert {i for i, a in enumerate(holm(p)) if a < 0.05} == rejected


def test_under_the_null_holm_says_better_at_all_no_oftener_than_one_time_in_twenty():
    """24 scenarios, 10 seeds, a policy that is nowhere better: how often is it found better anywhere?"""
    rng = np.random.default_rng(7)
    rounds, found, naive = 1200, 0, 0
    for _ in range(rounds):
        logs = rng.normal(0, 0.02, (24, 10))
        p = [paired_ratio(np.exp(row), np.ones(10)).better for row in logs]
        found += min(holm(p)) < 0.05
        naive += min(p) < 0.05
    assert found / rounds < 0.05 + 4 * math.sqrt(0.05 * 0.95 / rounds)
    assert naive / rounds > 0.5  # what the correction is for


def test_more_seeds_needed_by_hand_and_by_trial():
    # error 0.02 at 10 seeds, ratio 1: 1.645 · 0.02 · √10 / √n = ln 1.01 → n = 10 · (0.0329 / 0.00995)² = 109.3
    logs = np.array([1, -1] * 5) * 0.06  # mean 0, standard deviation 0.06·√(10/9) = 0.06325, error 0.02
    ratio = paired_ratio(np.exp(logs), np.ones(10))
    assert ratio.log_error == pytest.approx(0.02)
    assert seeds_needed(ratio, 0.01) == 110
    assert seeds_needed(paired_ratio([1.05, 1.06], [1, 1]), 0.01) is None  # it is worse: no number helps
    assert upper_bound(ratio, 0.95) == pytest.approx(ratio.upper)
