"""The classic auction as a live policy: what it learns, from what, and what it never does."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane import registry
from controlplane.auction import mechanism
from controlplane.auction.live_loads import FLOWS, LOAD_RANGE, PRIOR, FlowLoads
from controlplane.auction.live_shapley import Contributions
from controlplane.directive import check
from controlplane.policies.auction import SENSITIVITY_RANGE, SLA_RESERVE, Auction
from controlplane.policy import CURVE_N, PolicyError
from shm_layout.layout import FLOW_RECORD, SLA_CLASSES
from tests.policies.farm import Backend, Farm
from tests.policies.observations import observation, profile

GOLD, SILVER, BRONZE = (SLA_CLASSES.index(name) for name in ("gold", "silver", "bronze"))
HAS_TORCH = importlib.util.find_spec("torch") is not None
MODES = ["off", "continuous", "qlearning", "bandit", "ucb1", "thompson"] + ["dqn"] * HAS_TORCH


def busy(o, seconds, in_flight, *, won=0.0, bid=0.0, **fields):
    """Return an observation so many seconds later, in which each server had so many flows in flight all the time."""
    n = o.n_servers
    time = o.profile.time.copy()
    time[np.arange(n), np.searchsorted(CURVE_N, in_flight)] += seconds
    given = {
        "now": o.now + seconds,
        "profile": profile(n, time=time),
        "in_flight": np.asarray(in_flight, float),
        "auctions_won": o.auctions_won + won,
        "bid_sum": o.bid_sum + won * np.asarray(bid),
        "ids": o.ids,
        "active": o.active,
    }
    return observation(n, **(given | fields))


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning": "magic"}, "expected one of off, continuous, qlearning"),
        ({"epsilon": 0.5}, "epsilon: expected a number, 0 … 0.1"),
        ({"target_load_ratio": 1.5}, "target_load_ratio"),
        ({"risk_aversion": -1}, "risk_aversion: expected a number, at least 0"),
        ({"noise": "much"}, "noise"),
        ({"coalition_above": 2}, "coalition_above"),
        ({"shapley": "monopoly"}, "expected one of spare, pooled, serving"),
        ({"learning_rat": 0.1}, "did you mean 'learning_rate'"),
        ({"ledger": 7}, "ledger: expected the path of a file"),
        ({"ledger_sample": 2}, "ledger_sample: expected a share from 0 to 1"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        registry.create({"name": "auction", **options})


@pytest.mark.skipif(HAS_TORCH, reason="torch is installed: dqn would run")
def test_dqn_without_torch_says_what_is_missing():
    with pytest.raises(PolicyError, match=r"learning: mode dqn needs torch.*vickrey\[rl\]"):
        Auction(learning="dqn")


def test_exploration_is_off_unless_it_is_asked_for():
    assert Auction(learning="qlearning").agents.options.epsilon == 0
    for mode in ("ucb1", "thompson"):
        asked = Auction(learning=mode, epsilon=0.05).agents.options
        assert (asked.epsilon, asked.tries_most) == (0.05, 0.05), "what it tries by itself is bounded, too"


# --- what it learns ---------------------------------------------------------------------------------------------------


def test_capacity_is_shared_by_the_rates_and_all_are_full_at_their_workers():
    with Farm([Backend(0.02), Backend(0.02), Backend(0.08)], rate=250.0, policy="auction") as farm:
        farm.run(40.0)
        fitted = farm.loop.last.fitted
        capacity = fitted["capacity"]
        assert capacity[0] / capacity[2] == pytest.approx(4.0, rel=0.25)
        assert capacity.sum() == pytest.approx(12, rel=0.4)  # three servers of four workers
        assert np.isfinite([fitted["bid"], fitted["price"], fitted["margin"]]).all()
        assert (fitted["price"] >= fitted["bid"]).all()


def test_a_configured_capacity_is_kept_and_sets_the_scale_of_the_others():
    policy = Auction()
    o = observation(3, weight=np.array([1.0, 2.0, 4.0]), capacity=np.array([10.0, 0.0, 0.0]))
    assert policy.decide(o).classic.capacity == pytest.approx([10.0, 20.0, 40.0])


def test_a_queue_raises_capacities_to_a_bound_only():
    # A capacity that follows a pile-up without end would make the fast servers bid ever higher.
    policy = Auction(learning="off")
    first = observation(2)
    alone = policy.decide(first).classic.capacity.sum()
    piled = busy(first, 1.0, [64, 0], load_in_flight=np.array([6400.0, 0.0]))
    capacity = policy.decide(piled).classic.capacity.sum()
    assert alone < capacity <= 4.0 * policy.estimator.fit.k.sum() * 1.000001


def test_a_load_ratio_is_the_mean_over_the_round():
    policy = Auction(learning="off")
    first = observation(2, capacity=np.array([8.0, 8.0]))
    policy.decide(first)
    later = busy(first, 1.0, [4, 2], capacity=first.capacity, load_in_flight=np.array([4.0, 6.0]))
    # 4 flows of load 1 on 8; 2 of load 3
    assert policy.decide(later).fitted["load_ratio"] == pytest.approx([0.5, 0.75])


def test_who_is_above_its_target_becomes_more_sensitive_and_who_is_below_less():
    policy = Auction(learning="continuous", learning_rate=0.1)
    first = observation(2, capacity=np.array([8.0, 8.0]))
    policy.decide(first)
    later = busy(first, 1.0, [8, 0], capacity=first.capacity, won=1.0, bid=2.0)
    assert policy.decide(later).classic.sensitivity == pytest.approx([1 + 0.1 * 0.5, 1 - 0.1 * 0.5])


def test_a_round_without_flows_teaches_nothing():
    policy = Auction(learning="continuous")
    o = observation(2, capacity=np.array([8.0, 8.0]))
    policy.decide(o)
    for _ in range(5):
        o = busy(o, 1.0, [8, 0], capacity=np.array([8.0, 8.0]))
        assert policy.decide(o).classic.sensitivity == pytest.approx([1, 1])


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_serves_unequal_servers_with_sensitivities_in_bounds(mode):
    spec = {"name": "auction", "learning": mode, "epsilon": 0.1}
    backends = [Backend(mean) for mean in (0.04, 0.04, 0.02, 0.01)]
    with Farm(backends, rate=600.0, policy=spec) as farm:  # 0.75 of what they can
        got = farm.run(15.0)
        last = farm.loop.last
        check(last, 4)
        assert farm.loop.counts.failed == 0
        assert farm.loop.demoted == ""
        low, high = SENSITIVITY_RANGE
        assert ((last.fitted["sensitivity"] >= low) & (last.fitted["sensitivity"] <= high)).all()
        assert got.min() > 0.02
        assert got[3] > 2 * got[0]


def test_a_server_keeps_what_it_learned_when_rows_come_and_go():
    policy = Auction(learning="continuous")
    first = observation(3, capacity=np.full(3, 8.0))
    policy.decide(first)
    later = busy(first, 1.0, [8, 4, 0], capacity=first.capacity, won=1.0, bid=2.0)
    before = policy.decide(later).classic.sensitivity
    moved = observation(3, now=102.0, ids=np.array([9, 1, 3], dtype=np.uint64), capacity=np.full(3, 8.0))
    after = policy.decide(moved).classic.sensitivity
    assert after == pytest.approx([1.0, before[0], before[2]])
    fewer = observation(1, now=103.0, ids=np.array([3], dtype=np.uint64), capacity=np.full(1, 8.0))
    assert policy.decide(fewer).classic.sensitivity == pytest.approx([before[2]])


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed: needs vickrey[rl]")
def test_dqns_of_several_simulated_balancers_are_copies():
    policy = Auction(learning="dqn", epsilon=0.1)
    other = copy.deepcopy(policy)
    first = observation(2, capacity=np.array([8.0, 8.0]))
    for _ in range(3):
        first = busy(first, 1.0, [8, 0], capacity=first.capacity, won=1.0, bid=2.0)
        one, two = policy.decide(first).classic, other.decide(first).classic
        assert one.sensitivity == pytest.approx(two.sensitivity)
        assert one.neural == pytest.approx(two.neural)


# --- the mechanism ----------------------------------------------------------------------------------------------------

costs = st.floats(0.0, 100.0)


@given(costs, st.floats(0.0, 200.0), st.lists(costs, min_size=1, max_size=6))
def test_in_one_auction_nobody_gains_by_a_bid_that_is_not_its_cost(cost, untrue, others):
    def earned(own):
        award = mechanism.award(np.array([own, *others]))
        return award.price - cost if award.winner == 0 else 0.0

    assert earned(untrue) <= earned(cost)


# --- reserve ----------------------------------------------------------------------------------------------------------


def rounds(reserve, bid, **options):
    policy = Auction(learning="off", **options)
    first = observation(2, capacity=np.array([8.0, 8.0]), reserve=reserve)
    policy.decide(first)
    later = busy(first, 1.0, [4, 4], capacity=first.capacity, won=5.0, bid=bid, reserve=reserve)
    return policy.decide(later)


def test_the_reserve_is_one_and_a_half_times_the_mean_winning_bid():
    directive = rounds("classic", 2.0)
    assert directive.classic.reserve == pytest.approx(3.0)
    assert directive.reserve is None


def test_reserve_learned_holds_flows_above_it_gold_ones_last():
    directive = rounds("learned", 2.0)
    assert directive.reserve == pytest.approx(np.full(len(CURVE_N), 3.0))
    assert directive.sla_reserve == SLA_RESERVE
    assert SLA_RESERVE[GOLD] > SLA_RESERVE[SILVER] > SLA_RESERVE[BRONZE]
    check(directive, 2)


def test_a_heavy_flow_is_not_held_before_an_idle_server():
    # Bids of 0.5 won, but an idle server asks 1·(1 + 8/200): bronze flows must not be held there either.
    directive = rounds("learned", 0.5)
    assert directive.reserve[0] * SLA_RESERVE[BRONZE] > 1.0 * (1 + 8 / 200)


def test_gold_is_held_less_than_bronze_in_the_core():
    spec = {"name": "auction", "learning": "off"}
    with Farm([Backend(0.02)] * 2, rate=500.0, policy=spec, reserve="learned") as farm:
        farm.run(5.0)
        flows = [farm.balancer.open(i % 2, int(farm.now * 1e9)) for i in range(12)]
        farm.balancer.refresh(int(farm.now * 1e9))
        bid = farm.balancer.dispatch(int(farm.now * 1e9), unheld=True).bid
        reserve = float(farm.loop.last.reserve[0])
        for sla in (GOLD, SILVER, BRONZE):
            held = farm.balancer.dispatch(int(farm.now * 1e9), sla=sla).held
            assert held == (bid > np.float32(reserve) * np.float32(SLA_RESERVE[sla]))
        assert flows


# --- flows' loads -----------------------------------------------------------------------------------------------------


def records(rows):
    """Flow records of (route, sla, server slot, found, seconds)."""
    out = np.zeros(len(rows), dtype=FLOW_RECORD)
    for r, (route, sla, server, found, seconds) in zip(out, rows, strict=True):
        r["route"], r["sla"], r["server"], r["found"], r["server_id"] = route, sla, server, found, server + 1
        r["dispatched_ns"], r["closed_ns"] = 10**9, 10**9 + int(seconds * 1e9)
    return out


IDS = np.array([1, 2], dtype=np.uint64)
S, K = np.array([0.02, 0.01]), np.array([4.0, 4.0])


def test_a_routes_load_is_its_time_over_the_servers_mean():
    loads = FlowLoads()
    # Twice the mean time on either server, 400 flows; the prior is worth 20 flows of the class's mean.
    loads.learn(records([(1, SILVER, 0, 0, 0.04), (1, SILVER, 1, 3, 0.02)] * 200), IDS, S, K)
    by_class = (400 * 2 + PRIOR) / (400 + PRIOR)
    by_route = (400 * 2 + PRIOR * by_class) / (400 + PRIOR)  # as a load; as a factor on classes, over by_class
    found = loads.loads(np.zeros(3))
    assert found[:, SILVER] == pytest.approx([by_class, (400 * 2 + PRIOR * by_route) / (400 + PRIOR), by_class])
    assert found[:, GOLD] == pytest.approx([1.0, by_route / by_class, 1.0])


def test_flows_that_queued_failed_or_met_another_server_say_nothing():
    loads = FlowLoads()
    bad = records([(1, SILVER, 0, 4, 5.0), (1, SILVER, 0, 0, 5.0), (1, SILVER, 0, 0, 5.0), (1, SILVER, 7, 0, 5.0)])
    bad[1]["outcome"] = 3
    bad[2]["server_id"] = 99
    loads.learn(bad, IDS, S, K)
    assert loads.loads(np.zeros(2)) == pytest.approx(np.ones((2, 3)))


def test_a_route_without_history_is_taken_for_its_class():
    loads = FlowLoads()
    loads.learn(records([(1, GOLD, 0, 0, 0.06)] * 500 + [(2, GOLD, 0, 0, 0.06)]), IDS, S, K)
    found = loads.loads(np.zeros(4))
    assert found[:, GOLD] == pytest.approx(3.0, rel=0.05)
    assert found[[0, 3]][:, [SILVER, BRONZE]] == pytest.approx(1.0), "of other classes nothing is known"


def test_classes_of_one_route_weigh_what_their_own_flows_did():
    loads = FlowLoads()
    loads.learn(records([(0, GOLD, 0, 0, 0.01), (0, BRONZE, 0, 0, 0.1)] * 400), IDS, S, K)
    assert loads.loads(np.zeros(1))[0, [GOLD, BRONZE]] == pytest.approx([0.5, 5.0], rel=0.1)


def test_a_class_of_a_route_that_is_not_seen_yet_has_the_effects_of_both():
    loads = FlowLoads()
    seen = [(1, GOLD, 0, 0, 0.02), (1, BRONZE, 0, 0, 0.04), (2, GOLD, 0, 0, 0.06)]
    loads.learn(records(seen * 900), IDS, S, K)
    gold, bronze = loads.loads(np.zeros(3))[2, [GOLD, BRONZE]]
    assert gold == pytest.approx(3.0, rel=0.05)
    # Gold (900·1 + 900·3 + 20)/1820 = 1.989, bronze (900·2 + 20)/920 = 1.978; route 2 2740/(920·1.989) = 1.497.
    assert bronze == pytest.approx(1.497 * 1.978, rel=0.005)


def test_a_configured_load_is_kept_and_a_learned_one_bounded():
    loads = FlowLoads()
    loads.learn(records([(1, SILVER, 0, 0, 0.06), (2, SILVER, 0, 0, 900.0)] * 2000), IDS, S, K)
    found = loads.loads(np.array([0.0, 7.0, 0.0]))
    assert found[1].tolist() == [7.0] * 3
    assert found[2, SILVER] == LOAD_RANGE[1]


def test_history_fades():
    loads = FlowLoads()
    loads.learn(records([(1, SILVER, 0, 0, 0.06)] * 500), IDS, S, K)
    for _ in range(int(5 * FLOWS / 500)):
        loads.learn(records([(1, SILVER, 0, 0, 0.02)] * 500), IDS, S, K)
    assert loads.loads(np.zeros(2))[1, SILVER] == pytest.approx(1.0, abs=0.05)


def test_routes_are_asked_for_their_learned_loads():
    policy = Auction()
    found = records([(1, SILVER, 0, 0, 3.0), (0, SILVER, 1, 0, 1.0)] * 300)
    o = observation(2, route_loads=np.array([0.0, 0.0]), read_records=lambda: found)
    loads = policy.decide(o).loads
    assert loads[1, SILVER] > 2 * loads[0, SILVER]
    plain = observation(2, route_loads=np.array([0.0]), read_records=lambda: found)
    assert policy.decide(plain).loads is None


def test_classes_that_a_header_names_are_learned_without_routes():
    found = records([(0, GOLD, 0, 0, 0.5), (0, BRONZE, 1, 0, 5.0)] * 300)
    o = observation(2, route_loads=np.array([0.0]), classes_differ=True, read_records=lambda: found)
    loads = Auction().decide(o).loads
    assert loads.shape == (1, 3)
    assert loads[0, BRONZE] > 5 * loads[0, GOLD]


# --- coalitions -------------------------------------------------------------------------------------------------------


def test_hand_offs_are_by_spare_capacity_and_only_where_there_are_coalitions():
    first = observation(3, capacity=np.array([8.0, 8.0, 8.0]), coalition=np.array([1.0, 1.0, 0.0]))
    policy = Auction(learning="off")
    policy.decide(first)
    later = busy(first, 1.0, [6, 2, 0], capacity=first.capacity, coalition=first.coalition)
    classic = policy.decide(later).classic
    assert classic.shapley == pytest.approx([2.0, 6.0, 8.0])
    assert (classic.coalition_above, classic.coalition_below) == (0.6, 0.5)
    alone = Auction().decide(observation(3)).classic
    assert alone.coalition_below == 0, "nobody hands off"


@pytest.mark.parametrize("game", ["pooled", "serving"])
def test_the_costly_games_are_played_within_each_coalition(game):
    mu, k = np.array([50.0, 50.0, 200.0, 50.0]), np.full(4, 2.0)
    arrivals, active = np.array([40.0, 40.0, 160.0, 40.0]), np.array([True, True, True, False])
    coalition = np.array([1.0, 1.0, 1.0, 1.0])
    args = (np.ones(4), np.zeros(4), mu, k, arrivals, active, coalition)
    played = Contributions(game)
    phi = played.update(10.0, *args)
    assert phi[3] == 0
    assert phi[0] == pytest.approx(phi[1])
    assert (phi >= 0).all()
    assert phi[2] > 0
    assert played.update(10.1, *args) is phi  # the last values hold for a while


def test_an_overloaded_winner_hands_over_live():
    servers = [Backend(0.04, workers=1), Backend(0.01, workers=4), Backend(0.01, workers=4)]
    spec = {"name": "auction", "learning": "off", "coalition_above": 0.1, "coalition_below": 0.9}
    with Farm(servers, rate=500.0, policy=spec) as farm:
        for server in farm.servers:
            server.coalition = 3
        farm.publish()
        farm.run(5.0)
        assert farm.balancer.worker()["handoffs"] > 0
