"""Rule bids: lowest bid wins, second-lowest is the price, equal bids draw lots; few may bid; newcomers bid too."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane._dataplane import lib
from dataplane.core import NO_SERVER
from shm_layout.layout import CURVE_LOW, CURVE_POINTS
from tests.core.farm import RULE, Farm, chi_square_p, whole_curve

MAX_N = 6


@st.composite
def bidders(draw):
    """Curves, flows in flight and limits of a few servers; small integers, so that ties are common."""
    n = draw(st.integers(1, 6))
    rises = st.lists(st.integers(0, 3), min_size=MAX_N, max_size=MAX_N)
    curves = [np.cumsum(draw(rises)).astype(float).tolist() for _ in range(n)]
    in_flight = draw(st.lists(st.integers(0, MAX_N - 2), min_size=n, max_size=n))
    maxconn = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    return curves, in_flight, maxconn


def auction_model(curves, in_flight, maxconn, avoid):
    """Return the set of possible winners, the bid and the price."""
    may = [i for i in range(len(curves)) if not maxconn[i] or in_flight[i] < maxconn[i]]
    may = [i for i in may if i != avoid] or may
    if not may:
        return {NO_SERVER}, 0.0, math.inf
    bids = sorted((curves[i][in_flight[i]], i) for i in may)
    return {i for b, i in bids if b == bids[0][0]}, bids[0][0], bids[1][0] if len(bids) > 1 else math.inf


@settings(max_examples=150)
@given(bidders(), st.integers(0, 7))
def test_an_auction_is_as_the_model_says(bidders, avoid):
    curves, in_flight, maxconn = bidders
    with Farm(len(curves)) as farm:
        for server, limit in zip(farm.servers, maxconn, strict=True):
            server.maxconn = limit
        farm.publish_settings()
        farm.curves(curves)
        flows = farm.load(in_flight)
        winners, bid, price = auction_model(curves, in_flight, maxconn, avoid)
        award = farm.dispatch(avoid=avoid if avoid < len(curves) else NO_SERVER)
        assert award.server in winners
        assert (award.bid, award.price) == (bid, price)
        assert award.rule == RULE["bids"]
        assert award.full == (award.server == NO_SERVER)
        assert len(flows) == sum(in_flight)


def test_the_auctions_are_accounted_to_the_winner():
    with Farm(3) as farm:
        farm.curves([[2, 3], [5, 6], [9, 10]])
        won = farm.balancer.drill_dispatch(10)
        assert won.tolist() == [10, 0, 0]
        stats = farm.balancer.stats(0)
        assert (stats["auctions_won"], stats["bid_sum"], stats["price_sum"], stats["priced"]) == (10, 20.0, 50.0, 10)
        assert farm.balancer.worker()["auctions"] == 10


def test_a_lonely_bid_has_no_price():
    with Farm(1) as farm:
        farm.curves([[2, 3]])
        assert farm.dispatch().price == math.inf
        assert farm.balancer.stats(0)["priced"] == 0


@pytest.mark.parametrize("tied", [[0, 1], [0, 2, 3], list(range(23))])
def test_equal_bids_draw_lots_with_equal_chances(tied):
    n = 23
    with Farm(n) as farm:
        farm.curves([[1.0 if i in tied else 2.0, 3.0] for i in range(n)])
        won = farm.balancer.drill_dispatch(20_000)[:n]
        assert chi_square_p(won, [i in tied for i in range(n)]) > 1e-4


@settings(max_examples=60)
@given(st.lists(st.integers(0, 50), min_size=CURVE_POINTS, max_size=CURVE_POINTS), st.integers(0, 2000))
def test_a_curve_is_exact_to_63_and_linear_between_points_and_beyond(rises, n):
    curve = np.cumsum(rises).astype(np.float32)
    with Farm(1) as farm:
        farm.direct("bids", curves=curve[None, :])
        flows = farm.load([n])
        assert farm.dispatch().bid == pytest.approx(float(np.interp(n, CURVE_LOW, curve)), rel=1e-5, abs=1e-5)
        assert len(flows) == n


def test_a_curve_goes_on_beyond_its_last_point():
    n = 60_000
    with Farm(1) as farm:
        flows = farm.load([n])
        farm.direct("bids", curves=(np.asarray(CURVE_LOW, np.float32) * 2)[None, :])
        assert farm.dispatch().bid == pytest.approx(2 * n, rel=1e-6)
        assert len(flows) == n


@pytest.mark.parametrize("choices", [1, 2, 3])
def test_with_few_choices_every_set_of_bidders_is_as_likely(choices):
    # With distinct bids the server of rank r (from 0) wins when it is in the set and no better one is:
    # C(n - 1 - r, d - 1) sets of C(n, d).
    n = 7
    with Farm(n) as farm:
        farm.curves([[float(i), float(i)] for i in range(n)], choices=choices)
        won = farm.balancer.drill_dispatch(30_000)[:n]
        assert chi_square_p(won, [math.comb(n - 1 - r, choices - 1) for r in range(n)]) > 1e-4


def test_few_choices_are_drawn_among_those_with_room():
    # 40 servers, of which 3 have room: quick draws miss, the exact walk has to find every pair as often.
    n, free = 40, [3, 17, 31]
    with Farm(n) as farm:
        for i, server in enumerate(farm.servers):
            server.maxconn = 0 if i in free else 1
        farm.publish_settings()
        farm.curves([[float(i), float(i)] for i in range(n)], choices=2)
        flows = farm.load([0 if i in free else 1 for i in range(n)])
        won = farm.balancer.drill_dispatch(20_000)[:n]
        expected = np.zeros(n)
        expected[free] = [2, 1, 0]
        assert chi_square_p(won, expected) > 1e-4
        assert len(flows) == n - 3


def test_two_choices_price_the_other_one():
    with Farm(3) as farm:
        farm.curves([[1.0, 9], [2.0, 9], [3.0, 9]], choices=2)
        seen = {(a.bid, a.price) for a in (farm.dispatch() for _ in range(200))}
        assert seen == {(1.0, 2.0), (1.0, 3.0), (2.0, 3.0)}


def test_a_server_that_joined_bids_the_median_of_the_known_by_weight():
    with Farm(3, weights=[1, 1, 2], max_servers=4) as farm:
        farm.curves([[1, 3, 5], [2, 4, 6], [4, 5, 6]])
        farm.servers.append(type(farm.servers[0])(id=99, weight=2))
        farm.publish_settings()
        farm.refresh()
        for slot in range(3):
            farm.change(slot, state="drain")
        # n = 0: median of 1·1, 2·1, 4·2 is 2, over weight 2 is 1; n = 1: median of 3, 4, 10 is 4, over 2 is 2
        assert farm.dispatch().bid == 1.0
        flows = farm.load([0, 0, 0, 1])
        assert farm.dispatch().bid == 2.0
        assert len(flows) == 1


def test_a_row_of_another_server_does_not_count():
    with Farm(2) as farm:
        farm.curves([[0.0, 0.0], [7.0, 8.0]])
        farm.change(0, id=50)  # the slot is somebody else's now: it bids like the one that is known
        assert farm.balancer.drill_dispatch(400)[:2].min() > 100
        assert farm.dispatch().price == 7.0


def test_a_server_in_slow_start_bids_as_if_it_were_slower():
    with Farm(2, stale_after_ns=0) as farm:
        farm.curves([[1.0, 2.0], [6.0, 7.0]])
        farm.change(0, slowstart_begin_ns=farm.now, slowstart_ns=10 * 10**9)
        assert farm.dispatch().server == 1  # 1 / 0.1 against 6
        farm.now += 5 * 10**9
        farm.refresh()
        award = farm.dispatch()
        assert (award.server, award.bid) == (0, 2.0)  # 1 / 0.5
        farm.now += 6 * 10**9
        farm.refresh()
        assert farm.dispatch().bid == 1.0


@pytest.mark.parametrize(
    ("curve", "values"), [("lsq", [0, 1, 2]), ("sed", [0.5, 1, 1.5]), ("gsed", [0.25, 0.75, 1.25])]
)
def test_the_fallback_curves_need_no_directive(curve, values):
    with Farm(1, weights=[2], fallback_curve=curve) as farm:
        flows = []
        for value in values:
            assert farm.dispatch().bid == value
            flows += farm.load([1])


def test_bids_far_apart_stay_in_order():
    with Farm(3) as farm:
        farm.curves([[3.0e38, 3.0e38], [1e-30, 1e-30], [0.0, 0.0]])
        award = farm.dispatch()
        assert (award.server, award.bid) == (2, 0.0)
        assert award.price == pytest.approx(1e-30)


def test_the_same_seed_gives_the_same_choices():
    won = []
    for _ in range(2):
        with Farm(5, seed=7) as farm:
            farm.curves([[1.0, 1.0]] * 5)
            won.append([farm.dispatch().server for _ in range(100)])
    assert won[0] == won[1]


def test_the_helper_continues_a_curve_in_a_line():
    curve = whole_curve([1, 3])
    assert curve[:3].tolist() == [1, 3, 5]
    assert curve[-1] == 1 + 2 * lib.curve_bin_low(CURVE_POINTS - 1)
