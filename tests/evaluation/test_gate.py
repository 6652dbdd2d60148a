"""The gate lets a policy pass that is nowhere worse and somewhere better, and says why any other does not."""

import math
from dataclasses import replace

import numpy as np
import pytest

from controlplane.evaluation.gate import RECOVERY_MARGIN, Cell, judge
from controlplane.evaluation.statistics import paired_ratio

SEEDS = 10
# Deviations of ten seeds: mean 0, standard deviation about 1.
WAVE = np.array([1.5, -1.2, 0.7, -0.4, 1.1, -1.5, 0.4, -0.9, 0.9, -0.6])


def ratio(percent: float, spread: float = 0.2, seeds: int = SEEDS):
    """A policy that is so many per cent above a heuristic; spread: between the seeds, per cent."""
    x = np.exp(math.log1p(percent / 100) + spread / 100 * WAVE[:seeds])
    return paired_ratio(x, np.ones(seeds))


def cell(name: str = "here", /, **against: float) -> Cell:
    return Cell(name, {rival: ratio(percent) for rival, percent in against.items()})


def words(verdict) -> list[str]:
    return [found.word for found in verdict.cells]


def test_nowhere_worse_and_somewhere_better_passes():
    verdict = judge([cell("one", adaptive=0.0, lsq=-30.0), cell("two", adaptive=-5.0, lsq=-40.0)])
    assert verdict.passed
    assert verdict.reasons == ()
    assert words(verdict) == ["holds", "better"]
    assert verdict.better == ("two",)


def test_half_a_per_cent_worse_is_within_the_margin():
    verdict = judge([cell("one", adaptive=0.5), cell("two", adaptive=-5.0)])
    assert verdict.passed


def test_worse_in_one_of_many_scenarios_fails_and_is_named():
    cells = [cell(f"s{i}", adaptive=-5.0) for i in range(20)] + [cell("bad", adaptive=-5.0, gsed=3.0)]
    verdict = judge(cells)
    assert not verdict.passed
    assert verdict.reasons == ("bad: +3.00 % against gsed, expected at most +1 %",)
    assert words(verdict)[-1] == "worse"


def test_better_than_the_default_but_worse_than_the_best_tuned_heuristic_fails():
    assert not judge([cell(adaptive=-8.0, gsed=2.0, lsq=-50.0)]).passed


def test_an_estimate_within_the_margin_whose_bound_is_not_is_undecided_and_does_not_pass():
    noisy = Cell("noisy", {"adaptive": ratio(0.0, spread=5.0)})
    verdict = judge([noisy, cell("two", adaptive=-5.0)])
    assert not verdict.passed
    assert words(verdict)[0] == "undecided"
    assert "noisy: +0.00 % against adaptive, but up to +" in verdict.reasons[0]
    assert "seeds would tell" in verdict.reasons[0]


def test_as_good_everywhere_but_better_nowhere_fails():
    verdict = judge([cell("one", adaptive=0.0), cell("two", adaptive=0.0)])
    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert verdict.reasons[0].startswith("better nowhere")


def test_the_heuristic_itself_holds_everywhere_and_is_better_nowhere():
    same = Cell("one", {"adaptive": paired_ratio(np.arange(1.0, 11.0), np.arange(1.0, 11.0))})
    verdict = judge([same])
    assert words(verdict) == ["holds"]
    assert not verdict.passed


def test_an_advantage_that_does_not_survive_the_correction_is_none():
    # One of forty is better with p about 0.01: 40 times that is no proof.
    lucky = Cell("lucky", {"adaptive": ratio(-0.14, spread=0.17)})
    alone = judge([lucky])
    assert alone.passed
    assert 0.002 < alone.cells[0].p < 0.05
    among = judge([lucky, *(cell(f"s{i}", adaptive=0.0) for i in range(39))])
    assert not among.passed
    assert among.better == ()


def test_better_means_better_than_every_heuristic():
    verdict = judge([cell("one", adaptive=-5.0, gsed=0.0, lsq=-30.0)])
    assert verdict.better == ()


def test_fewer_seeds_than_ten_are_too_few():
    few = Cell("few", {"adaptive": ratio(-10.0, seeds=9)})
    verdict = judge([few])
    assert not verdict.passed
    assert verdict.reasons == ("9 paired seeds: expected at least 10",)


def test_a_policy_that_raised_has_no_figure_and_does_not_pass():
    broken = Cell("broken", {"adaptive": paired_ratio([math.nan] * SEEDS, np.ones(SEEDS))}, problem="ValueError: no")
    verdict = judge([broken, cell("two", adaptive=-5.0)])
    assert not verdict.passed
    assert words(verdict) == ["no figure", "better"]
    assert "broken: ValueError: no" in verdict.reasons


def test_a_heuristic_without_a_figure_is_no_rival_but_the_others_are():
    gone = paired_ratio(np.ones(SEEDS), [math.nan] * SEEDS)
    verdict = judge([Cell("one", {"lsq": gone, "adaptive": ratio(-5.0)})])
    assert verdict.passed
    assert not judge([Cell("one", {"lsq": gone})]).passed


def test_flows_may_not_be_lost_for_speed():
    lossy = replace(cell("lossy", adaptive=-5.0), lost=0.02 + 0.001 * WAVE, lost_best=0.01 + 0.001 * WAVE[::-1])
    verdict = judge([lossy])
    assert not verdict.passed
    assert verdict.reasons == ("lossy: loses 2 % of the flows, the best heuristic 1 %",)
    as_many = replace(cell("lossy", adaptive=-5.0), lost=0.01 + 0.001 * WAVE, lost_best=0.01 + 0.001 * WAVE[::-1])
    assert judge([as_many]).passed


def test_a_slower_recovery_fails_and_as_fast_a_one_does_not():
    swap = cell("swap", adaptive=-5.0)
    slow = replace(swap, recovery={"adaptive": ratio(100 * RECOVERY_MARGIN + 1)})
    verdict = judge([slow])
    assert not verdict.passed
    assert verdict.reasons[0].startswith("swap: after the change +6.00 % against adaptive")
    assert judge([replace(swap, recovery={"adaptive": ratio(0.0), "gsed_estimated": ratio(-3.0)})]).passed


def test_nothing_evaluated_is_nothing_passed():
    assert not judge([]).passed


@pytest.mark.parametrize(("truth", "at_most"), [(1.0101, 0.05), (1.02, 0.001)])
def test_a_policy_that_is_worse_by_more_than_the_margin_anywhere_rarely_passes(truth, at_most):
    """Nine scenarios in which it shines, and one in which it is truly worse; 1 % of noise a seed."""
    rng = np.random.default_rng(11)
    shining = [cell(f"s{i}", adaptive=-5.0) for i in range(9)]
    rounds, passed = 600, 0
    for _ in range(rounds):
        worse = paired_ratio(truth * np.exp(rng.normal(0, 0.01, SEEDS)), np.ones(SEEDS))
        passed += judge([*shining, Cell("worse", {"adaptive": worse})]).passed
    assert passed / rounds <= at_most + 4 * math.sqrt(at_most * (1 - at_most) / rounds)


def test_a_policy_that_is_better_nowhere_rarely_passes():
    rng = np.random.default_rng(12)
    rounds, passed = 300, 0
    for _ in range(rounds):
        cells = [
            Cell(f"s{i}", {"adaptive": paired_ratio(np.exp(rng.normal(0, 0.005, SEEDS)), np.ones(SEEDS))})
            for i in range(20)
        ]
        passed += judge(cells).passed
    assert passed / rounds <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / rounds)
