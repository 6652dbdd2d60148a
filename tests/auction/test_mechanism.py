"""The equations of the auction: golden values worked by hand, properties, and the data plane's rule beside them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.auction import mechanism as m
from tests.core.farm import Farm, classic_rows


def test_the_load_ratio_is_load_over_capacity_and_at_most_one():
    assert m.load_ratio([40, 80, 120], [80, 80, 80]).tolist() == [0.5, 1.0, 1.0]


def test_the_base_bid_is_sensitivity_times_ratio_plus_the_tasks_load():
    # 2·0.75 + 5
    assert m.base_bid(2, 0.75, 5) == pytest.approx(6.5)


def test_the_risk_factor_counts_only_what_is_above_the_target():
    # 1 + 0.5·(0.8 − 0.5); below the target 1
    assert m.risk_factor(0.5, [0.8, 0.3], 0.5).tolist() == pytest.approx([1.15, 1.0])


def test_the_final_bid_is_dampened_by_capacity_and_clamped():
    # 10·(1 + 80/200) = 14;  900·1.4 = 1260, clamped
    assert m.final_bid([10, 900], 80).tolist() == pytest.approx([14, 1000])


def test_noise_is_added_before_the_dampening():
    # (10 + 1)·1.4
    assert m.final_bid(10, 80, noise=1) == pytest.approx(15.4)


def test_a_whole_bid():
    # ρ = 60/80 = 0.75;  base = 2·0.75 + 5 = 6.5;  adjusted = 6.5·(1 + 0.8·0.25) = 7.8;  neural · 1.1 = 8.58
    # noise 0.02: 8.6;  final = 8.6·(1 + 80/200) = 12.04
    bid = m.bids([60], [80], [2], [0.8], [0.5], 5, neural=1.1, noise=0.02)
    assert bid.tolist() == pytest.approx([12.04])


def test_a_server_beyond_its_capacity_bids_as_at_its_capacity():
    full, beyond = m.bids([80, 400], [80, 80], [2, 2], [0.8, 0.8], [0.5, 0.5], 5)
    assert full == beyond == pytest.approx((2 + 5) * 1.4 * 1.4)


def test_the_lowest_bid_wins_and_the_second_lowest_is_the_price():
    assert m.award(np.array([3.0, 1.0, 2.0])) == (1, 1.0, 2.0)
    assert m.award(np.array([3.0])) == (0, 3.0, math.inf)
    assert m.award(np.array([])) == (m.NOBODY, math.inf, math.inf)


def test_equal_bids_draw_lots_and_pay_what_they_bid():
    rng = np.random.default_rng(1)
    awards = [m.award(np.array([2.0, 1.0, 1.0]), rng) for _ in range(200)]
    assert {award.winner for award in awards} == {1, 2}
    assert {award.price for award in awards} == {1.0}


def test_the_reserve_is_one_and_a_half_times_the_mean_winning_bid():
    assert m.reserve_after([80, 100, 105]) == pytest.approx(142.5)
    assert m.reserve_after([], before=142.5) == 142.5


def test_arrivals_follow_a_sine():
    # base 10, amplitude 4, period 20: a quarter of a period is the crest
    assert m.average_tasks([0, 5, 10, 15], 10, 4, 20).tolist() == pytest.approx([10, 14, 10, 6])
    assert m.average_tasks([15], 2, 4, 20).tolist() == [0]


def test_servers_work_at_a_fixed_rate_until_nothing_is_left():
    assert m.process([30, 5], 10).tolist() == [20, 0]


def test_social_welfare_is_how_far_loads_are_from_their_targets():
    # −(|50 − 40| + |10 − 30|)
    assert m.social_welfare([50, 10], [80, 60], 0.5) == -30
    assert m.social_welfare([40, 30], [80, 60], 0.5) == 0


def test_jains_index():
    assert m.jain([1, 1, 1]) == 1
    assert m.jain([1, 0, 0, 0]) == 0.25
    assert m.jain([0, 0]) == 1
    assert m.jain([1, 2]) == pytest.approx(9 / 10)


def test_the_constants_are_the_white_papers():
    assert (m.OVERLOAD, m.PARTNER_BELOW, m.CLAMP, m.CAPACITY_SCALE, m.RESERVE_FACTOR) == (0.6, 0.5, 1000, 200, 1.5)


amounts = st.floats(0, 200)
server = st.tuples(amounts, st.floats(1, 300), st.floats(0.01, 100), st.floats(0, 3), st.floats(0, 1))


@given(server, st.floats(0, 100), st.floats(0, 50))
def test_a_bid_never_falls_when_the_load_grows(one, task, more):
    load, *rest = one
    assert m.bids(load + more, *rest, task) >= m.bids(load, *rest, task)


@given(server, st.floats(0, 100))
def test_a_bid_is_never_below_the_tasks_load_and_never_above_the_clamp(one, task):
    assert min(task, m.CLAMP) <= m.bids(*one, task) <= m.CLAMP


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=9))
def test_the_price_is_never_below_the_winning_bid_and_losers_bid_no_less_than_it(values):
    won = m.award(np.array(values))
    others = values[: won.winner] + values[won.winner + 1 :]
    assert won.bid == min(values)
    assert won.price == min(others, default=math.inf) >= won.bid


@given(st.lists(server, min_size=1, max_size=5), st.lists(st.floats(0, 50), min_size=1, max_size=4))
def test_many_tasks_at_once_are_the_same_as_one_by_one(servers, tasks):
    columns = [np.array(column) for column in zip(*servers, strict=True)]
    together = m.bids(*columns, np.array(tasks)[:, None])
    assert together.tolist() == [m.bids(*columns, task).tolist() for task in tasks]


single = st.fixed_dictionaries(
    {
        "capacity": st.floats(0.125, 256, width=32),
        "sensitivity": st.floats(0, 4, width=32),
        "risk_aversion": st.floats(0, 4, width=32),
        "target_load_ratio": st.floats(0, 1, width=32),
        "neural": st.floats(0.5, 1.5, width=32),
    }
)


@settings(max_examples=60)
@given(st.lists(st.tuples(single, st.floats(0, 300, width=32)), min_size=1, max_size=6), st.floats(0, 2, width=32))
def test_the_data_planes_rule_holds_the_same_auction(servers, task):
    rows, loads = zip(*servers, strict=True)
    names = ("capacity", "sensitivity", "risk_aversion", "target_load_ratio", "neural")
    capacity, sensitivity, risk, target, neural = (np.array([row[name] for row in rows]) for name in names)
    wanted = m.bids(np.array(loads), capacity, sensitivity, risk, target, task, neural)
    with Farm(len(rows)) as farm:
        farm.direct("classic", classic=classic_rows(rows))
        flows = [farm.balancer.open(i, farm.now, load=load) for i, load in enumerate(loads) if load]
        award = farm.dispatch(load=task)
        ours = m.award(wanted)
        assert award.bid == pytest.approx(ours.bid, rel=1e-5, abs=1e-6)
        assert award.price == (pytest.approx(ours.price, rel=1e-5, abs=1e-6) if len(rows) > 1 else math.inf)
        assert wanted[award.server] == pytest.approx(ours.bid, rel=1e-5, abs=1e-6)
        assert len(flows) == sum(map(bool, loads))
