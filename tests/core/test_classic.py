"""Rule classic: the seed's auction, to the letter of its formula."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.farm import Farm, chi_square_p, classic_rows

F = np.float32


def bid_model(load, capacity, flow, sensitivity=1.0, risk_aversion=0.5, target_load_ratio=0.5, neural=1.0):
    """DESIGN, section 3, in double precision."""
    ratio = min(load / capacity, 1)
    base = sensitivity * ratio + flow
    adjusted = base * (1 + risk_aversion * max(0, ratio - target_load_ratio)) * neural
    return min(adjusted * (1 + capacity / 200), 1000)


def loaded(farm, loads):
    return [farm.balancer.open(i, farm.now, load=load) for i, load in enumerate(loads) if load]


def test_the_bid_follows_the_formula():
    # ρ = 0.8, base = 1·0.8 + 0.1, adjusted = 0.9·(1 + 0.5·0.3), final = 1.035·(1 + 100/200)
    with Farm(1) as farm:
        farm.direct("classic", classic=classic_rows([{"capacity": 100}]))
        flows = loaded(farm, [80])
        assert farm.dispatch(load=0.1).bid == pytest.approx(1.5525)
        assert len(flows) == 1


amounts = st.floats(0, 4, width=32)
rows = st.fixed_dictionaries(
    {
        "capacity": st.floats(0.125, 256, width=32),
        "sensitivity": amounts,
        "risk_aversion": amounts,
        "target_load_ratio": st.floats(0, 1, width=32),
        "neural": st.floats(0.5, 1.5, width=32),
    }
)


@settings(max_examples=100)
@given(st.lists(st.tuples(rows, st.floats(0, 300, width=32)), min_size=1, max_size=6), st.floats(0, 2, width=32))
def test_the_lowest_bid_wins_and_the_second_is_the_price(servers, flow):
    rows, loads = zip(*servers, strict=True)
    with Farm(len(rows)) as farm:
        farm.direct("classic", classic=classic_rows(rows))
        flows = loaded(farm, loads)
        award = farm.dispatch(load=flow)
        bids = sorted(bid_model(load, flow=flow, **row) for row, load in servers)
        assert award.bid == pytest.approx(bids[0], rel=1e-4, abs=1e-6)
        assert award.price == (pytest.approx(bids[1], rel=1e-4, abs=1e-6) if len(bids) > 1 else math.inf)
        own = bid_model(loads[award.server], flow=flow, **rows[award.server])
        assert own == pytest.approx(award.bid, rel=1e-4, abs=1e-6)
        assert len(flows) == sum(map(bool, loads))


def test_bids_end_at_a_thousand_and_there_draw_lots():
    with Farm(3) as farm:
        farm.direct("classic", classic=classic_rows([{"sensitivity": 5000, "capacity": c} for c in (1, 2, 3)]))
        flows = loaded(farm, [1, 2, 3])
        assert (farm.dispatch().bid, farm.dispatch().price) == (1000, 1000)
        assert chi_square_p(farm.balancer.drill_dispatch(6000), [1, 1, 1]) > 1e-4
        assert len(flows) == 3


def test_noise_is_added_before_the_capacity_factor():
    with Farm(1) as farm:
        farm.direct("classic", classic=classic_rows([{"capacity": 100}]), classic_noise=2.0)
        bids = np.array([farm.dispatch(load=1.0).bid for _ in range(2000)])
        # (1 + ε)·1.5 with ε uniform in [0, 2)
        assert 1.5 <= bids.min() < 1.55
        assert 4.45 < bids.max() < 4.5
        assert bids.mean() == pytest.approx(3.0, abs=0.1)


def test_a_winner_above_the_reserve_is_flagged_and_counted_not_refused():
    with Farm(1) as farm:
        farm.direct("classic", classic=classic_rows([{"capacity": 100}]), classic_reserve=1.6)
        assert not farm.dispatch(load=1.0).above_reserve  # 1.5
        award = farm.dispatch(load=2.0)
        assert award.above_reserve
        assert award.server == 0
        assert farm.balancer.worker()["auctions_above_reserve"] == 1


def test_load_leaves_with_its_flow():
    with Farm(1) as farm:
        farm.direct("classic", classic=classic_rows([{"capacity": 100}]))
        flows = [farm.balancer.open(0, farm.now, load=load) for load in (0.1, 0.2, 70.0)]
        farm.balancer.close(flows[2], farm.now)
        assert farm.balancer.stats(0)["load_in_flight"] == pytest.approx(0.3, rel=1e-6)
        farm.balancer.close(flows[0], farm.now)
        farm.balancer.close(flows[1], farm.now)
        assert farm.balancer.stats(0)["load_in_flight"] == 0
        assert farm.dispatch(load=1.0).bid == 1.5


def test_load_is_summed_over_workers():
    with Farm(1, workers=2) as farm:
        farm.direct("classic", classic=classic_rows([{"capacity": 100}]))
        flows = [balancer.open(0, farm.now, load=40.0) for balancer in farm.balancers]
        assert farm.dispatch(load=0.1).bid == pytest.approx(1.5525)
        assert farm.balancers[1].dispatch(farm.now, load=0.1).bid == pytest.approx(1.5525)
        assert len(flows) == 2


@pytest.mark.parametrize("load", [math.nan, math.inf])
def test_a_load_that_is_no_amount_counts_as_none(load):
    with Farm(1) as farm:
        farm.direct("classic", classic=classic_rows([{"capacity": 100}]))
        flow = farm.balancer.open(0, farm.now, load=load)
        assert farm.dispatch(load=load).bid == 0
        assert flow.load == 0


def test_a_server_that_joined_has_the_mean_parameters_and_capacity_by_weight():
    with Farm(2, max_servers=3) as farm:
        rows = [{"capacity": 100, "sensitivity": 2}, {"capacity": 300, "sensitivity": 4}]
        farm.direct("classic", classic=classic_rows(rows))
        farm.servers.append(type(farm.servers[0])(id=9, weight=2))
        farm.publish_settings()
        farm.refresh()
        farm.change(0, state="drain")
        farm.change(1, state="drain")
        flow = farm.balancer.open(2, farm.now, load=200)
        assert farm.dispatch(load=1).bid == pytest.approx(bid_model(200, 400, 1, sensitivity=3))
        assert flow.load == 200


# --- coalitions -------------------------------------------------------------------------------------------------------

# Capacity 100 each, sensitivity so low that the overloaded first server wins by its flow's load alone.
WINNER = {"capacity": 10.0, "sensitivity": 0.0, "risk_aversion": 0.0, "coalition": 1}
PARTNER = {"capacity": 100.0, "sensitivity": 0.0, "risk_aversion": 0.0, "coalition": 1}
HAND_OFF = {"coalition_above": 0.6, "coalition_below": 0.5}


def coalition(farm, rows, ratios, **thresholds):
    """Direct, and load each server to its ratio; return what must be kept alive."""
    farm.direct("classic", classic=classic_rows(rows), **(HAND_OFF | thresholds))
    return loaded(farm, [row["capacity"] * ratio for row, ratio in zip(rows, ratios, strict=True)])


def test_an_overloaded_winner_shares_with_its_partners_in_the_ratio_of_their_shapley_values():
    # The bid is x·(1 + c/200): the server of capacity 10 wins always. 1 : 3 : 4 among winner and two partners.
    rows = [
        WINNER | {"shapley": 1.0},
        PARTNER | {"shapley": 3.0},
        PARTNER | {"shapley": 4.0},
        PARTNER | {"shapley": 9.0, "coalition": 2},
        PARTNER | {"shapley": 9.0},
    ]
    with Farm(5) as farm:
        flows = coalition(farm, rows, [0.7, 0.4, 0.0, 0.0, 0.5])  # the last is at 0.5, not below it
        taken = farm.balancer.drill_dispatch(8000)
        assert chi_square_p(taken, [1, 3, 4, 0, 0]) > 1e-4
        assert farm.balancer.worker()["handoffs"] == taken[1] + taken[2]
        won = [farm.balancer.stats(i)["auctions_won"] for i in range(5)]
        assert won == [8000, 0, 0, 0, 0], "what was bid is the winner's, whoever takes the flow"
        assert len(flows) == 3


def test_any_load_may_count_as_overload():
    rows = [WINNER | {"shapley": 0.0}, PARTNER | {"shapley": 1.0}]
    with Farm(2) as farm:
        coalition(farm, rows, [0.1, 0.0], coalition_above=0.0)
        assert farm.dispatch(load=1.0).handoff


def test_a_hand_off_leaves_bid_and_price_the_auctions():
    rows = [WINNER | {"shapley": 0.0}, PARTNER | {"shapley": 1.0}]
    with Farm(2) as farm:
        flows = coalition(farm, rows, [0.7, 0.1])
        award = farm.dispatch(load=1.0)
        assert (award.server, award.handoff) == (1, True)
        assert (award.bid, award.price) == (pytest.approx(1.05), pytest.approx(1.5))
        assert len(flows) == 2


@pytest.mark.parametrize(
    ("change", "ratios", "thresholds"),
    [
        ({}, [0.6, 0.0], {}),  # not above 0.6
        ({}, [0.9, 0.5], {}),  # no partner below 0.5
        ({"coalition": 0}, [0.9, 0.0], {}),  # of no coalition
        ({"coalition": 2}, [0.9, 0.0], {}),  # of another one
        ({}, [0.9, 0.0], {"coalition_below": 0.0}),  # switched off
    ],
)
def test_without_overload_or_partner_the_winner_keeps_the_flow(change, ratios, thresholds):
    # 0.6 and 0.5 of these capacities are whole: the 32-bit ratio is the threshold itself.
    rows = [WINNER | change | {"shapley": 0.0}, PARTNER | change | {"shapley": 1.0}]
    if change.get("coalition") == 2:
        rows[1]["coalition"] = 3
    with Farm(2) as farm:
        flows = coalition(farm, rows, ratios, **thresholds)
        before = farm.balancer.worker()["handoffs"]
        assert [farm.dispatch().server for _ in range(20)] == [0] * 20
        assert farm.balancer.worker()["handoffs"] == before == 0
        assert flows


def test_a_partner_that_may_take_no_flow_gets_none():
    rows = [WINNER | {"shapley": 0.0}, PARTNER | {"shapley": 1.0}, PARTNER | {"shapley": 1.0}]
    with Farm(3) as farm:
        flows = coalition(farm, rows, [0.7, 0.1, 0.1])
        farm.change(1, state="drain")
        farm.change(2, maxconn=1)
        assert not farm.dispatch().handoff
        farm.change(2, maxconn=2)
        assert farm.dispatch().server == 2
        assert farm.dispatch(avoid=2).server == 0
        assert flows


def test_partners_that_contribute_nothing_share_evenly():
    rows = [WINNER | {"shapley": 0.0}, PARTNER | {"shapley": 0.0}]
    with Farm(2) as farm:
        flows = coalition(farm, rows, [0.7, 0.1])
        assert chi_square_p(farm.balancer.drill_dispatch(4000), [1, 1]) > 1e-4
        assert flows


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0, 1.2), st.integers(0, 2), st.floats(0, 8, width=32), st.floats(1, 64, width=32)),
        min_size=1,
        max_size=7,
    ),
    st.floats(0.05, 0.95),
    st.floats(0.05, 0.95),
)
def test_only_partners_of_an_overloaded_winner_take_over(servers, above, below):
    rows = [{"capacity": capacity, "coalition": group, "shapley": phi} for ratio, group, phi, capacity in servers]
    with Farm(len(rows)) as farm:
        flows = coalition(farm, rows, [s[0] for s in servers], coalition_above=above, coalition_below=below)
        held = np.array([farm.balancer.stats(i)["load_in_flight"] for i in range(len(rows))], dtype=F)
        ratio = np.minimum(held / np.array([row["capacity"] for row in rows], dtype=F), F(1))
        bids = [bid_model(float(held[i]), row["capacity"], 1.0) for i, row in enumerate(rows)]
        for _ in range(12):
            award = farm.dispatch(load=1.0)
            assert award.bid == pytest.approx(min(bids), rel=1e-4)
            if not award.handoff:
                assert bids[award.server] == pytest.approx(min(bids), rel=1e-4)
                continue
            group = rows[award.server]["coalition"]
            assert group != 0
            assert ratio[award.server] < F(below)
            winners = [i for i, bid in enumerate(bids) if bid == pytest.approx(min(bids), rel=1e-4)]
            assert any(rows[i]["coalition"] == group and ratio[i] > F(above) for i in winners)
        assert len(flows) == sum(s[0] > 0 for s in servers)
