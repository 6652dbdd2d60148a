"""Confidence intervals: they hold the truth 95 times of a hundred, and pairing makes differences sure."""

import math

import numpy as np
import pytest
from scipy import stats

from controlplane.simulation.intervals import estimate, relative, student


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 10, 11, 12, 20, 29, 100, 1000])
def test_students_quantiles_are_scipys(freedom):
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)


@pytest.mark.parametrize("samples", [2, 5, 20])
def test_the_interval_holds_the_mean_95_times_of_a_hundred(samples):
    rng = np.random.default_rng(1)
    rows = [estimate(rng.normal(3.0, 2.0, samples)) for _ in range(4000)]
    assert np.mean([row.low < 3.0 < row.high for row in rows]) == pytest.approx(0.95, abs=0.012)


def test_one_sample_tells_no_interval():
    assert estimate([4.0]).mean == 4.0
    assert math.isnan(estimate([4.0]).half)
    assert math.isnan(estimate([]).mean)


def test_what_samples_have_in_common_cancels_in_a_relative_difference():
    rng = np.random.default_rng(2)
    base = rng.uniform(5.0, 15.0, 12)
    found = relative(1.1 * base, base)
    assert found.mean == pytest.approx(0.1)
    assert found.half == pytest.approx(0.0, abs=1e-12)
    noisy = relative(1.1 * base + rng.normal(0, 0.1, 12), base)
    assert noisy.low < 0.1 < noisy.high
    assert noisy.half < 0.02


def test_relative_intervals_hold_the_truth_95_times_of_a_hundred():
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(3000):
        common = rng.normal(0, 1.0, 6)
        found = relative(12 + common + rng.normal(0, 0.3, 6), 10 + common + rng.normal(0, 0.3, 6))
        hits.append(found.low < 0.2 < found.high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def test_there_is_no_difference_from_nothing():
    assert math.isnan(relative([1.0, 2.0], [0.0, 0.0]).mean)
    assert math.isnan(relative([1.0, 2.0], [math.nan, math.nan]).mean)
