"""The round-based simulation: rounds worked by hand, a plain model beside the compiled one, and what SLA levels do."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.auction.rounds import Auctioneer, Simulation
from controlplane.auction.scenario import Farm, Scenario
from controlplane.auction.tasks import BRONZE, GOLD, SILVER, TASK, in_order, rounds_of
from dataplane._dataplane import lib
from tests.auction import model

FLAGS = {
    "above": lib.ROUND_ABOVE,
    "coalition": lib.ROUND_COALITION,
    "deferred": lib.ROUND_DEFERRED,
    "outbid": lib.ROUND_OUTBID,
    "late": lib.ROUND_LATE,
}


def farm_of(*rows):
    """Servers as dicts; what a row leaves out is that of the first test."""
    default = {
        "capacity": 100.0,
        "sensitivity": 10.0,
        "risk_aversion": 0.5,
        "target": 0.5,
        "rate": 10.0,
        "coalition": 0,
    }
    filled = [{**default, **row} for row in rows]
    columns = {name: np.array([row[name] for row in filled], float) for name in default}
    columns["coalition"] = columns["coalition"].astype(np.uint32)
    return Farm(**columns)


def tasks_of(*rows):
    tasks = np.zeros(len(rows), dtype=TASK)
    for task, row in zip(tasks, rows, strict=True):
        for name, value in {"load": 4.0, "work": 4.0, "latency": 100.0, "sla": SILVER, **row}.items():
            task[name] = value
    return tasks


def auctioneer(farm, load=None, **rules):
    scenario = Scenario(auction={"noise": 0.0, **rules})
    made = Auctioneer(farm, scenario, np.random.default_rng(1))
    if load is not None:
        made.load[:] = load
    return made


def events(award):
    return {name for name, bit in FLAGS.items() if int(award["flags"]) & bit}


# --- one round, by hand -----------------------------------------------------------------------------------------------


def test_two_tasks_of_one_round_by_hand():
    made = auctioneer(farm_of({"capacity": 100}, {"capacity": 50}), load=[20, 0])
    awards, sums = made.hold(tasks_of({"load": 4, "work": 5}, {"load": 4, "work": 5}), reserve=0.0)
    # first: (10·0.2 + 4)·1.5 = 9;  (0 + 4)·1.25 = 5
    # second: 9 again;  (10·0.1 + 4)·1.25 = 6.25
    assert awards["server"].tolist() == [1, 1]
    assert awards["bid"].tolist() == pytest.approx([5, 6.25])
    assert awards["price"].tolist() == pytest.approx([9, 9])
    assert made.load.tolist() == [20, 10]
    # (0 + 5)/10 and (5 + 5)/10 rounds
    assert awards["completion"].tolist() == pytest.approx([0.5, 1.0])
    assert (sums["bids"], sums["prices"], sums["normal"]) == (pytest.approx(11.25), pytest.approx(18), 2)


def test_an_overloaded_winner_shares_equally_with_its_partner():
    farm = farm_of({"sensitivity": 1}, {"sensitivity": 50}, {"sensitivity": 50})
    made = auctioneer(farm, load=[70, 40, 30])
    (award,), _ = made.hold(tasks_of({"work": 8}), reserve=0.0)
    # (0.7 + 4)·(1 + 0.5·0.2)·1.5 = 7.755 is the lowest; 0.7 > 0.6, and of those below 0.5 server 2 is less busy
    assert award["bid"] == pytest.approx(7.755)
    assert events(award) == {"coalition"}
    assert (award["server"], award["partner"][0], award["partners"]) == (0, 2, 1)
    assert made.load.tolist() == [74, 40, 34]
    assert award["completion"] == pytest.approx(7.4)


def test_a_shapley_split_is_by_spare_capacity():
    made = auctioneer(farm_of({"sensitivity": 1}, {"sensitivity": 50}), load=[70, 40], split="shapley")
    (award,), _ = made.hold(tasks_of({"work": 9}), reserve=0.0)
    # 30 and 60 to spare: a third and two thirds
    assert award["share"][:2].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert made.load.tolist() == pytest.approx([73, 46])


def test_the_shapley_split_is_by_the_shapley_values_of_the_spare_capacity_game():
    """By the definition: the mean marginal contribution over all orders."""
    spare = [30.0, 60.0, 75.0]
    phi = np.zeros(3)
    orders = list(itertools.permutations(range(3)))
    for order in orders:
        worth = 0.0
        for i in order:
            phi[i] += (worth + spare[i]) - worth
            worth += spare[i]
    phi /= len(orders)
    farm = farm_of({"sensitivity": 1}, {"sensitivity": 50}, {"sensitivity": 50})
    made = auctioneer(farm, load=[70, 40, 25], split="shapley", partners=2)
    (award,), _ = made.hold(tasks_of({}), reserve=0.0)
    members = [int(award["server"]), *map(int, award["partner"][:2])]
    assert award["share"][:3].tolist() == pytest.approx((phi / phi.sum())[members].tolist())


@pytest.mark.parametrize(
    ("load", "coalitions"),
    [([60, 40], (0, 0)), ([70, 50], (0, 0)), ([70, 40], (0, 1))],
    ids=["at 0.6", "at 0.5", "other"],
)
def test_no_partner_without_overload_or_beyond_the_threshold_or_of_another_coalition(load, coalitions):
    farm = farm_of({"sensitivity": 1, "coalition": coalitions[0]}, {"sensitivity": 50, "coalition": coalitions[1]})
    (award,), _ = auctioneer(farm, load=load).hold(tasks_of({}), reserve=0.0)
    assert award["server"] == 0
    assert not events(award)


def test_a_winner_above_the_reserve_is_flagged_and_gets_the_task():
    made = auctioneer(farm_of({}))
    awards, _ = made.hold(tasks_of({"load": 4}, {"load": 6}), reserve=7.0)
    # 4·1.5 = 6;  (10·0.04 + 6)·1.5 = 9.6
    assert [events(award) for award in awards] == [set(), {"above"}]
    assert made.load.tolist() == [8]


def test_bronze_above_the_reserve_is_deferred_as_often_as_allowed():
    tasks = tasks_of(
        {"sla": BRONZE},
        {"sla": BRONZE, "deferrals": 2},
        {"sla": BRONZE, "deferrals": 3},
        {"sla": SILVER},
        {"sla": GOLD},
    )
    made = auctioneer(farm_of({}), deferrals=3)
    awards, sums = made.hold(tasks, reserve=1.0)
    assert [events(award) for award in awards] == [{"deferred"}, {"deferred"}, {"above"}, {"above"}, {"above"}]
    assert awards["server"].tolist() == [lib.ROUND_NOBODY] * 2 + [0] * 3
    assert sums["deferred"] == 2
    assert made.load.tolist() == [12]


def test_gold_outbids_for_a_server_that_is_in_time():
    farm = farm_of({"rate": 1}, {"capacity": 150, "rate": 10}, {"capacity": 180, "rate": 10})
    load = [2, 0, 0]
    late = tasks_of({"sla": SILVER, "latency": 2})
    (award,), _ = auctioneer(farm, load=load).hold(late, reserve=0.0)
    # (0.2 + 4)·1.5 = 6.3 is the lowest, but (2 + 4)/1 rounds are late
    assert (award["server"], events(award)) == (0, {"late"})
    late["sla"] = GOLD
    (award,), _ = auctioneer(farm, load=load).hold(late, reserve=0.0)
    # 4·1.75 = 7 wins among those in time; 4·1.9 = 7.6 is its price
    assert (award["server"], events(award)) == (1, {"outbid"})
    assert (award["bid"], award["price"]) == (pytest.approx(7), pytest.approx(7.6))
    late["latency"] = 0.1  # nobody is in time
    (award,), _ = auctioneer(farm, load=load).hold(late, reserve=0.0)
    assert (award["server"], events(award)) == (0, {"late"})


def test_without_sla_all_levels_are_as_written():
    farm = farm_of({"rate": 1}, {"capacity": 150, "rate": 10})
    made = auctioneer(farm, load=[2, 0], sla=False)
    awards, _ = made.hold(tasks_of({"sla": GOLD, "latency": 2}, {"sla": BRONZE}), reserve=1.0)
    assert [events(award) for award in awards] == [{"above", "late"}, {"above"}]


def test_a_farm_without_servers_or_a_class_that_is_none_is_refused():
    with pytest.raises(ValueError, match="refused"):
        auctioneer(farm_of({})).hold(tasks_of({"sla": 3}), reserve=0.0)


# --- the compiled round and the plain one -----------------------------------------------------------------------------

servers = st.lists(
    st.fixed_dictionaries(
        {
            "capacity": st.floats(20, 200),
            "sensitivity": st.floats(0.1, 60),
            "risk_aversion": st.floats(0, 2),
            "target": st.floats(0, 1),
            "rate": st.floats(1, 20),
            "coalition": st.integers(0, 1),
        }
    ),
    min_size=1,
    max_size=9,
)
tasks = st.lists(
    st.fixed_dictionaries(
        {
            "load": st.floats(0.5, 30),
            "work": st.floats(0.5, 40),
            "latency": st.floats(0.5, 12),
            "waited": st.integers(0, 3),
            "deferrals": st.integers(0, 3),
            "sla": st.integers(0, 2),
        }
    ),
    max_size=25,
)
rules = st.fixed_dictionaries(
    {"partners": st.integers(0, 3), "split": st.sampled_from(["equal", "shapley"]), "sla": st.booleans()}
)


@settings(max_examples=80)
@given(servers, tasks, rules, st.floats(0, 60), st.data())
def test_a_round_is_what_a_plain_model_makes_of_it(rows, jobs, rule, reserve, data):
    # No two alike: equal bids draw lots, which the model does not.
    rows = [{**row, "capacity": row["capacity"] * (1 + (i + 1) * 1.7e-3)} for i, row in enumerate(rows)]
    farm = farm_of(*rows)
    load = [data.draw(st.floats(0, 1.4)) * row["capacity"] for row in rows]
    made = auctioneer(farm, load=load, **rule)
    some = tasks_of(*jobs)
    awards, sums = made.hold(some, reserve)
    for task, award in zip(some, awards, strict=True):
        expected = model.hold(farm, load, farm.sensitivity, task, model.Rules(reserve=reserve, **rule))
        assert award["bid"] == pytest.approx(expected.bid, rel=1e-9)
        assert award["price"] == pytest.approx(expected.price, rel=1e-9)
        assert events(award) == expected.events
        if expected.servers:
            members = [int(award["server"]), *map(int, award["partner"][: award["partners"]])]
            assert members == expected.servers
            assert award["share"][: len(members)].tolist() == pytest.approx(expected.shares)
            assert award["completion"] == pytest.approx(expected.completion)
        else:
            assert award["server"] == lib.ROUND_NOBODY
    assert made.load.tolist() == pytest.approx(load)
    assert sums["auctions"].sum() == len(jobs)


def test_equal_bids_draw_lots():
    made = auctioneer(farm_of(*[{"rate": 1e9}] * 4))
    awards, _ = made.hold(tasks_of(*[{"work": 0.0}] * 4000), reserve=0.0)
    wins = np.bincount(awards["server"], minlength=4)
    assert wins.min() > 900
    assert (awards["price"] == awards["bid"]).all()


def test_noise_is_uniform_and_differs_from_server_to_server():
    made = auctioneer(farm_of({"capacity": 200}, {"capacity": 200}), noise=2.0)
    awards, _ = made.hold(tasks_of(*[{"work": 0.0, "load": 1}] * 20_000), reserve=0.0)
    # (1 + ε)·2: the lower of two uniform ε in [0, 2) has mean 2/3, the higher 4/3
    assert awards["bid"].mean() == pytest.approx(2 * (1 + 2 / 3), abs=0.03)
    assert awards["price"].mean() == pytest.approx(2 * (1 + 4 / 3), abs=0.03)
    assert 2.0 <= awards["bid"].min() <= awards["price"].max() < 6.0


# --- whole runs -------------------------------------------------------------------------------------------------------


def small(**changes):
    return Scenario(**{"rounds": 120, "servers": 5, "seed": 3, "mode": "qlearning", **changes})


def test_a_seed_repeats_exactly_and_another_differs():
    first, second, other = (Simulation(small(seed=seed)) for seed in (3, 3, 4))
    a, b, c = (simulation.run().rows for simulation in (first, second, other))
    assert a.tobytes() == b.tobytes()
    assert a.tobytes() != c.tobytes()


def test_runs_of_one_seed_see_the_same_servers_and_tasks_whatever_the_mode():
    runs = [Simulation(small(mode=mode)) for mode in ("off", "bandit")]
    rows = [run.run().rows for run in runs]
    assert rows[0]["tasks"].tolist() == rows[1]["tasks"].tolist()
    assert runs[0].farm.capacity.tolist() == runs[1].farm.capacity.tolist()


def test_work_is_conserved():
    """What was awarded was worked off or is there; loads change by nothing else."""
    simulation = Simulation(small(tasks={"base": 20}))
    before = 0.0
    while simulation.step():
        given = float(simulation.metrics.work.sum()) - before
        before += given
    # Never more than the rate was worked off.
    rows = simulation.metrics.rows
    most = float(simulation.farm.rate.sum()) * len(rows)
    assert before - float(simulation.load.sum()) <= most + 1e-6
    assert rows["tasks"].sum() == rows["awarded"].sum() + rows["pending"][-1]
    assert rows["auctions"].sum() == rows["awarded"].sum() + rows["deferred"].sum()


def test_the_reserve_follows_the_winning_bids():
    rows = Simulation(small()).run().rows
    there = rows["awarded"] > 0
    assert rows["reserve"][there].tolist() == pytest.approx((1.5 * rows["bid"][there]).tolist())


def test_every_task_is_awarded_before_it_was_deferred_more_often_than_allowed():
    simulation = Simulation(small(auction={"deferrals": 2}, tasks={"base": 30}))
    most = 0
    while simulation.step():
        pending = simulation._pending
        most = max(most, int(pending["deferrals"].max()) if pending is not None else 0)
    assert most == 2


def test_the_shapley_values_of_a_round_are_spare_capacities():
    from controlplane.auction.shapley import exact

    simulation = Simulation(small())
    simulation.run()
    spare = simulation.farm.capacity - simulation.load
    worth = [sum(spare[i] for i in range(5) if mask >> i & 1) for mask in range(32)]
    phi = exact(np.array(worth), 5)
    row = simulation.metrics.rows[-1]
    assert (row["shapley_min"], row["shapley_max"]) == (pytest.approx(phi.min()), pytest.approx(phi.max()))


def test_fairness_and_welfare_are_those_of_the_loads():
    simulation = Simulation(small())
    simulation.run()
    row, load, farm = simulation.metrics.rows[-1], simulation.load, simulation.farm
    u = load / farm.capacity
    assert row["fairness_std"] == pytest.approx(np.sqrt(np.mean((load - load.mean()) ** 2)))
    assert row["jain"] == pytest.approx(u.sum() ** 2 / (5 * (u**2).sum()))
    assert row["welfare"] == pytest.approx(-sum(abs(load - farm.capacity * farm.target)))
    assert simulation.metrics.loads[-1].tolist() == pytest.approx(load.tolist(), rel=1e-6)


def test_sla_levels_are_kept_and_paid_for_by_the_lower_ones():
    """Gold misses less than it would without levels, in every seed; bronze waits longer."""
    for seed in range(1, 6):
        with_levels, without = (
            Simulation(Scenario(rounds=600, seed=seed, servers=12, auction={"sla": sla})).run().summary()["classes"]
            for sla in (True, False)
        )
        assert with_levels["gold"]["miss_share"] < 0.7 * without["gold"]["miss_share"]
        assert with_levels["gold"]["deferrals"] == with_levels["silver"]["deferrals"] == 0
        assert with_levels["bronze"]["completion"] > without["bronze"]["completion"]
        assert without["bronze"]["deferrals"] == 0


def test_coalitions_appear_at_the_peaks_of_the_arrivals_alone():
    idle, busy = (
        Simulation(small(servers=20, utilisation=rho, mode="off")).run().rows["coalitions"] for rho in (0.3, 0.9)
    )
    assert idle.sum() == 0
    # The sine has its crests in rounds 12.5 and 62.5, its troughs in 37.5 and 87.5; backlogs come a little later.
    assert busy[12:30].sum() > 100
    assert busy[62:80].sum() > 100
    assert busy[37:50].sum() == busy[87:100].sum() == 0


def test_long_histories_are_thinned(monkeypatch):
    from controlplane.auction import metrics

    monkeypatch.setattr(metrics, "HISTORY_CELLS", 100)
    simulation = Simulation(small())
    simulation.run()
    assert simulation.metrics.history_rounds.tolist() == list(range(1, 121, 6))
    assert simulation.metrics.loads.shape == (20, 5)
    assert len(simulation.metrics.rows) == 120


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_fixed_arrivals_follow_the_sine_exactly():
    demand = Scenario(tasks={"base": 10.0, "amplitude": 4.0, "period": 20.0, "arrivals": "fixed"}).demand()
    counts = [tasks.size for tasks in rounds_of(demand, 600, np.random.default_rng(1))]
    assert [counts[4], counts[9], counts[14], counts[19]] == [14, 10, 6, 10]  # rounds 5, 10, 15 and 20
    assert len(counts) == 600
    assert counts[500:520] == counts[:20]


def test_tasks_are_drawn_as_the_scenario_says():
    given = {
        "base": 400.0,
        "load": (2.0, 6.0),
        "complexity": (1.0, 2.0),
        "shares": {"gold": 1, "silver": 1, "bronze": 2},
    }
    demand = Scenario(tasks=given).demand()
    tasks = np.concatenate(list(rounds_of(demand, 50, np.random.default_rng(1))))
    assert tasks.size == pytest.approx(20_000, rel=0.05)
    assert (tasks["load"].min() >= 2, tasks["load"].max() <= 6) == (True, True)
    assert tasks["load"].mean() == pytest.approx(4, rel=0.02)
    assert (tasks["work"] / tasks["load"]).mean() == pytest.approx(1.5, rel=0.02)
    assert np.bincount(tasks["sla"]) / tasks.size == pytest.approx([0.25, 0.25, 0.5], abs=0.02)


def test_gold_comes_first_and_within_a_level_the_older():
    tasks = tasks_of(
        {"sla": BRONZE, "load": 1}, {"sla": GOLD, "load": 2}, {"sla": SILVER, "load": 3}, {"sla": GOLD, "load": 4}
    )
    assert in_order(tasks)["load"].tolist() == [2, 4, 3, 1]
