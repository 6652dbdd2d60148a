"""The reserve that holds: a flow whose lowest bid is above it waits, while a completion of somebody may change that."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dataplane.core import NO_SERVER
from shm_layout.layout import CURVE_LOW, SLA_CLASSES
from tests.core.farm import SECOND, Farm, classic_rows, whole_curve

GOLD, SILVER, BRONZE = (SLA_CLASSES.index(name) for name in ("gold", "silver", "bronze"))


def flat(value: float) -> np.ndarray:
    return np.full(len(CURVE_LOW), value, dtype=np.float32)


def test_a_bid_above_the_reserve_holds_the_flow_and_one_at_it_does_not():
    with Farm(2) as farm:
        curves = [whole_curve([1, 5]), whole_curve([3, 6])]
        farm.direct("bids", curves=curves, reserve=flat(3))
        first = farm.balancer.open(farm.dispatch().server, farm.now)
        assert first.server == 0
        assert farm.dispatch().server == 1  # its bid of 3 is the reserve
        second = farm.balancer.open(1, farm.now)
        held = farm.dispatch()
        assert (held.server, held.full, held.held, held.bid) == (NO_SERVER, True, True, 5)
        assert farm.dispatch(unheld=True).server == 0
        farm.balancer.close(second, farm.now)
        assert farm.dispatch().server == 1


def test_nobody_is_held_when_no_completion_could_end_it():
    with Farm(2) as farm:
        farm.direct("bids", curves=[whole_curve([4, 5]), whole_curve([8, 9])], reserve=flat(1))
        assert farm.dispatch().server == 0
        farm.balancer.open(0, farm.now)
        assert farm.dispatch().held


def test_the_reserve_is_read_at_the_flows_that_wait():
    with Farm(2) as farm:
        reserve = (CURVE_LOW / 2).astype(np.float32)
        farm.direct("bids", curves=[whole_curve([0, 40.25]), whole_curve([100, 101])], reserve=reserve)
        farm.balancer.open(0, farm.now)
        assert farm.dispatch(waiting=80).held
        assert farm.dispatch(waiting=81).server == 0  # 40.5: linear between the curve's points


def test_a_newcomer_leaves_a_place_to_those_before_it_who_would_take_that_server_idle():
    with Farm(2) as farm:
        curves = [whole_curve([0.5, 3.5]), whole_curve([2.5, 90])]  # a second flow wants three waiting, the slow two
        farm.direct("bids", curves=curves, reserve=(CURVE_LOW + 1).astype(np.float32))
        farm.balancer.open(0, farm.now)
        slow = farm.balancer.open(1, farm.now)
        yields = farm.dispatch(waiting=3, queued=(0, 3, 0))
        assert (yields.server, yields.held, yields.bid, yields.idle_bid) == (NO_SERVER, True, 3.5, 0.5)
        assert farm.dispatch(waiting=3).server == 0  # as who has waited
        farm.balancer.close(slow, farm.now)
        assert farm.dispatch(waiting=1, queued=(0, 1, 0)).held
        assert farm.dispatch(waiting=2, queued=(0, 2, 0)).server == 1  # nobody before it wants the slow one
        assert farm.dispatch(waiting=3, queued=(0, 3, 0)).held  # one does


def test_a_newcomer_yields_only_to_those_who_would_take_it_by_their_own_reserve():
    with Farm(2) as farm:
        curves = [whole_curve([1, 90]), whole_curve([2.5, 90])]
        farm.direct("bids", curves=curves, reserve=flat(3), sla_reserve=(0.5, 1, 0.5))
        farm.balancer.open(0, farm.now)
        assert farm.dispatch(waiting=1, queued=(1, 0, 0)).server == 1  # to gold, at 1.5, it is too dear
        assert farm.dispatch(waiting=1, queued=(0, 1, 0)).held


def test_under_the_classic_rule_nobody_yields_since_bids_hang_on_the_flow():
    with Farm(1) as farm:
        farm.direct("classic", classic=classic_rows([{"capacity": 10}]), reserve=flat(3))
        farm.balancer.open(0, farm.now, load=1)
        assert farm.dispatch(load=0.1, waiting=1, queued=(0, 1, 0)).server == 0


def test_a_full_servers_bid_grows_until_a_flow_comes_or_leaves():
    with Farm(2) as farm:
        curves = [whole_curve([1, 2, 4]), whole_curve([50, 60])]
        farm.direct("bids", curves=curves, reserve=flat(4), aging=[[1, 0.5], [1, 9]])
        flow = farm.balancer.open(0, farm.now)
        assert farm.dispatch().bid == 2
        farm.now += SECOND
        assert [farm.dispatch().bid for _ in range(3)] == [pytest.approx(3)] * 3  # of the moment, however often asked
        farm.now += SECOND
        assert not farm.dispatch().held
        farm.now += SECOND // 10
        late = farm.dispatch()
        assert late.held
        assert (late.bid, late.idle_bid) == (pytest.approx(4.1), 1)
        farm.balancer.open(0, farm.now)
        assert farm.dispatch().bid == 4
        farm.balancer.close(flow, farm.now)
        assert farm.dispatch().bid == 2


def test_what_has_room_for_more_does_not_age_nor_does_a_server_without_a_rate():
    with Farm(3) as farm:
        curves = [whole_curve([1, 2, 4]), whole_curve([3, 5, 9]), whole_curve([90, 91])]
        farm.direct("bids", curves=curves, aging=[[2, 1], [0, 0], [0, 1]])
        farm.load([1, 1, 0])
        farm.now += 100 * SECOND
        award = farm.dispatch()
        assert (award.server, award.bid, award.price) == (0, 2, 5)
        farm.balancer.open(0, farm.now)
        farm.now += SECOND
        award = farm.dispatch()  # 4, and 8 now
        assert (award.server, award.bid, award.price) == (1, 5, pytest.approx(8))


def test_a_server_that_is_full_by_maxconn_stays_out_of_the_auction_however_its_bid_would_grow():
    with Farm(2) as farm:
        farm.change(0, maxconn=1)
        farm.direct("bids", curves=[whole_curve([1, 2]), whole_curve([1e30, 2e30])], aging=[[1, 1], [0, 3e38]])
        farm.balancer.open(0, farm.now)
        farm.now += 10**9 * SECOND
        award = farm.dispatch()
        assert (award.server, award.price) == (1, math.inf)


def test_many_bids_that_grew_to_different_heights_leave_the_youngest_the_lowest():
    n = 40
    with Farm(n) as farm:
        for server in range(n):
            farm.now += SECOND // 8
            farm.balancer.open((7 * server) % n, farm.now)
        farm.direct("bids", curves=[whole_curve([1, 2])] * n, aging=[[1, 1]] * n)
        farm.now += SECOND
        award = farm.dispatch()
        assert (award.server, award.bid, award.price) == (7 * (n - 1) % n, pytest.approx(4), pytest.approx(4.25))


def test_among_a_few_that_are_drawn_no_bid_grows():
    with Farm(3) as farm:
        curves = [whole_curve([1, 2]), whole_curve([2, 3]), whole_curve([3, 4])]
        farm.direct("bids", curves=curves, aging=[[0, 1]] * 3, choices=2)
        farm.now += SECOND
        assert {farm.dispatch().bid for _ in range(50)} == {1, 2}


def test_a_flow_that_only_its_failed_server_could_take_is_offered_it_at_its_grown_bid():
    with Farm(2) as farm:
        farm.change(1, maxconn=1)
        farm.direct("bids", curves=[whole_curve([1, 2]), whole_curve([1, 2])], aging=[[1, 1], [1, 1]])
        farm.load([1, 1])
        farm.now += SECOND
        award = farm.dispatch(avoid=0)
        assert (award.server, award.bid) == (0, pytest.approx(4))


def test_bids_stop_growing_with_a_directive_that_says_nothing_of_it():
    with Farm(1) as farm:
        curves = [whole_curve([1, 2])]
        farm.direct("bids", curves=curves, aging=[[1, 1]])
        farm.balancer.open(0, farm.now)
        farm.now += SECOND
        assert farm.dispatch().bid == pytest.approx(4)
        farm.direct("bids", curves=curves)
        assert farm.dispatch().bid == 2


@pytest.mark.parametrize(("sla", "held"), [(GOLD, False), (SILVER, True), (BRONZE, True)])
def test_gold_outbids_the_reserve_that_holds_the_others(sla, held):
    with Farm(1) as farm:
        farm.direct("bids", curves=[whole_curve([1, 2, 3])], reserve=flat(1.5), sla_reserve=(2, 1, 0.5))
        farm.balancer.open(0, farm.now)
        assert farm.dispatch(sla=sla).held is held


def test_the_classic_auction_holds_by_its_own_bids():
    with Farm(2) as farm:
        farm.direct("classic", classic=classic_rows([{"capacity": 10}, {"capacity": 10}]), reserve=flat(1.2))
        farm.balancer.open(0, farm.now, load=5)
        farm.balancer.open(1, farm.now, load=5)
        assert farm.dispatch(load=1.0).held
        assert not farm.dispatch(load=0.1).held


def test_a_flow_of_unknown_load_has_its_route_s_and_class_s():
    with Farm(1) as farm:
        farm.direct("classic", classic=classic_rows([{"capacity": 100}]), loads=[[1.0, 1.0, 1.0], [2.0, 3.0, 4.0]])
        assert [farm.dispatch(load=-1, route=1, sla=sla).load for sla in range(3)] == [2, 3, 4]
        assert farm.dispatch(load=-1, route=1, sla=1).bid == pytest.approx(4.5)
        assert farm.dispatch(load=-1, route=2).load == 1
        assert farm.dispatch(load=2, route=1).load == 2


def test_held_flows_are_counted_and_the_margin_is_the_second_price_less_the_bid():
    with Farm(2) as farm:
        farm.direct("bids", curves=[whole_curve([1, 9]), whole_curve([4, 9])], reserve=flat(2))
        farm.balancer.open(farm.dispatch().server, farm.now)
        assert farm.dispatch().held
        stats, worker = farm.segment.read_stats(0, 2), farm.segment.read_workers()[0]
        assert stats["margin_sum"].tolist() == [3, 0]
        assert (worker["auctions"], worker["held"], worker["no_server_full"]) == (1, 1, 0)
