"""The learned reserve: thresholds against the exact optimum, properties, late binding from a cold start."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.policies.adaptive import Adaptive
from controlplane.policy import CURVE_N, Directive, Observation
from controlplane.reserve import LateBinding, bind_late, classes_of, limits, thresholds
from controlplane.speeds import Speeds
from dataplane.simulator import (
    BoundedPareto,
    Deterministic,
    Exponential,
    Hyperexponential,
    Join,
    Poisson,
    Result,
    Server,
    Simulation,
    SpeedChange,
    World,
)
from dataplane.simulator.references import central_queue
from shm_layout.layout import CURVE_EXACT, FLOW_RECORD

SPEEDS = (1, 1, 1, 1, 2, 2, 4, 4)


class Watched(Adaptive):
    """adaptive, that keeps what it decided last and how often it held."""

    def __init__(self) -> None:
        super().__init__()
        self.decided: list[Directive] = []

    def __deepcopy__(self, memo: object) -> Watched:
        return self

    def decide(self, observation: Observation) -> Directive:
        self.decided.append(super().decide(observation))
        return self.decided[-1]


def world(rho: float, workers: int, demand: object = None, flows: int = 20_000, speeds=SPEEDS, **fields) -> World:
    demand = Exponential(0.02) if demand is None else demand
    delay, service = fields.pop("delay", 0.0), fields.pop("service", "fifo")
    rate = rho * workers * sum(speeds) / demand.mean
    servers = [Server(speed=s, workers=workers, delay=delay, service=service) for s in speeds]
    fields = {"warmup": 0.1 * flows / rate} | fields
    return World(servers, Poisson(rate), demand, seed=1, flows=flows, rings=True, **fields)


def run(w: World, reserve: str = "learned", policy: Adaptive | None = None) -> Result:
    return Simulation(w, ring_slots=16384).run(policy or Adaptive(), reserve=reserve)


def central(result: Result) -> np.ndarray:
    r, w = result.records, result.world
    found = central_queue(
        r["arrival_ns"], r["work_ns"] * 1e-9, [s.speed for s in w.servers], [s.workers for s in w.servers]
    )
    return found[r["arrival_ns"] >= w.warmup * 1e9]


def two_servers(lam: float, fast: float, slow: float, threshold: int, waiting: int = 70) -> float:
    """Return the exact mean number in the system of two servers of one worker: the slow one takes from threshold on."""
    # States (q, fast busy, slow busy): flows wait only while the fast server is busy.
    index = {(0, 0, 0): 0, (0, 0, 1): 1}
    for q in range(waiting + 1):
        index[q, 1, 0] = len(index)
        index[q, 1, 1] = len(index)

    def settled(q: int, a: int, b: int) -> tuple[int, int, int]:
        if q and not a:
            q, a = q - 1, 1
        if not b and q > threshold:
            q, b = q - 1, 1
        return q, a, b

    n = len(index)
    rates = np.zeros((n, n))
    for (q, a, b), i in index.items():
        for rate, to in (
            (lam, (q + 1, a, b) if q < waiting else None),
            (fast * a, (q, 0, b)),
            (slow * b, (q, a, 0)),
        ):
            if to is not None and rate:
                rates[i, index[settled(*to)]] += rate
    rates -= np.diag(rates.sum(axis=1))
    equations = rates.T.copy()
    equations[0] = 1.0  # one is redundant: the probabilities add up to 1 instead
    pi = np.linalg.solve(equations, np.eye(n)[0])
    return float(sum(pi[i] * sum(state) for state, i in index.items()))


@pytest.mark.parametrize("ratio", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("rho", [0.4, 0.7, 0.9])
def test_the_threshold_of_a_slow_server_is_within_one_per_cent_of_the_best_of_all_thresholds(ratio, rho):
    lam = rho * (1.0 + 1.0 / ratio)
    chosen = int(thresholds(lam, np.array([1.0, 1.0 / ratio]), np.ones(2))[1])
    best = min(two_servers(lam, 1.0, 1.0 / ratio, t) for t in range(int(2 * ratio) + 2))
    assert two_servers(lam, 1.0, 1.0 / ratio, chosen) <= 1.01 * best


def test_waiting_is_never_chosen_over_an_equal_server():
    assert thresholds(3.0, np.array([1.0, 0.999]), np.array([4.0, 4.0]))[1] <= 1.0
    assert bind_late(3.0, np.ones(5), np.ones(5)).wanted.max() == 0.0


positive = st.floats(1e-3, 1e4)


@settings(max_examples=60)
@given(st.lists(st.tuples(positive, st.integers(1, 300)), min_size=1, max_size=30), st.floats(0.0, 2.0))
def test_curves_are_finite_and_monotone_and_an_idle_server_takes_a_flow_from_a_queue_long_enough(servers, rho):
    mu, k = np.array(servers, dtype=float).T
    found = bind_late(rho * float((mu * k).sum()), mu, k)
    for curves in (found.curves, found.reserve[None]):
        assert np.isfinite(curves).all()
        assert (curves >= 0.0).all()
        assert (np.diff(curves, axis=1) >= 0.0).all()
    # Nobody waits for ever: with workers free at a server there is a length of the queue from which on it is used,
    # the fastest at once.
    assert (found.curves[:, 0] <= found.reserve[-1]).all()
    assert found.curves[np.argmax(mu), 0] <= found.reserve[0]
    # Nor does a server pile up what it cannot work on: for m flows beyond its limit so many must wait that all its
    # workers have ended half of those by the time the queue would be empty.
    exact = found.limit < CURVE_EXACT - 10  # where the curve's points are apart they are of fewer flows
    deep = found.curves[exact, found.limit[exact].astype(int) + 9]
    assert (deep * (1.0 + 1e-9) >= 0.5 * 10.0 / (found.limit * mu)[exact]).all()


def test_four_thousand_servers_are_priced_within_a_control_interval():
    rng = np.random.default_rng(1)
    mu, k = rng.lognormal(0.0, 1.0, 4096), rng.integers(1, 64, 4096).astype(float)
    assert classes_of(mu).max() < 50
    found = bind_late(0.8 * float((mu * k).sum()), mu, k)
    assert found.curves.shape == (4096, len(CURVE_N))


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(("rho", "demand"), [(0.5, Exponential(0.02)), (0.85, Deterministic(0.02))])
def test_from_a_cold_start_it_is_no_worse_than_a_central_queue(workers, rho, demand):
    result = run(world(rho, workers, demand))
    assert result.fct.mean() <= 1.02 * central(result).mean()


def test_equal_servers_are_as_good_as_a_central_queue():
    result = run(world(0.8, 2, speeds=(1,) * 8, flows=30_000))
    assert result.fct.mean() <= 1.03 * central(result).mean()


def test_servers_that_share_their_cores_are_found_out_and_nobody_is_held_for_them():
    w, policy = world(0.7, 1, BoundedPareto(0.02), service="sharing"), Watched()
    learned, off = run(w, policy=policy), run(w, "off")
    assert learned.fct.mean() <= 1.05 * off.fct.mean()
    assert policy.late.sharing
    assert policy.decided[-1].reserve is None


def test_shared_cores_and_demands_alike_gain_from_late_binding():
    w = world(0.85, 1, Deterministic(0.02), service="sharing")
    assert run(w).fct.mean() < 0.9 * run(w, "off").fct.mean()


def test_a_way_that_is_long_beside_the_service_ends_late_binding():
    far, near = Watched(), Watched()
    assert (
        run(world(0.9, 1, delay=0.005), policy=far).fct.mean()
        <= 1.02 * run(world(0.9, 1, delay=0.005), "off").fct.mean()
    )
    run(world(0.9, 1, delay=0.00005), policy=near)
    assert far.decided[-1].reserve is None
    assert near.decided[-1].reserve is not None


def _taken_from(found, server, n):
    """Return how many flows must wait before a server with n in flight takes one; None: none ever."""
    enough = np.flatnonzero(found.reserve >= found.curves[server, n])
    return int(CURVE_N[enough[0]]) if len(enough) else None


def test_a_full_server_gets_the_next_flow_once_half_as_many_wait_as_leave_until_its_next_completion():
    # Rates 100, 50 and 25 a second of 400: meanwhile 4, 8 and 16 flows leave. The fast ones get a second, at twice as
    # many, since they are twice as fast as the usual worker; every other one costs twice that.
    mu = np.array([25.0, 25, 25, 25, 50, 50, 100, 100])
    found = bind_late(380.0, mu, np.ones(8))
    assert [_taken_from(found, i, 1) for i in range(8)] == [8, 8, 8, 8, 4, 4, 2, 2]
    assert [_taken_from(found, i, 2) for i in range(8)] == [32, 32, 32, 32, 16, 16, 4, 4]
    assert [_taken_from(found, i, 3) for i in range(8)] == [48, 48, 48, 48, 24, 24, 12, 12]
    # c² = 3: 2^1.5 = 2.83 times as many. Below 1 it is the same, and above 4 as with 4: 3.95.
    assert [_taken_from(bind_late(380.0, mu, np.ones(8), variation=3.0), i, 1) for i in (0, 4, 6)] == [23, 12, 6]
    assert [_taken_from(bind_late(380.0, mu, np.ones(8), variation=9.0), i, 1) for i in (0, 4, 6)] == [32, 16, 8]
    assert np.array_equal(bind_late(380.0, mu, np.ones(8), variation=0.0).curves, found.curves)
    # Nor where the limit was not seen: there it is tried, and deeper.
    tried = bind_late(380.0, mu, np.ones(8), tried=np.full(8, 3.0), variation=3.0)
    assert [_taken_from(tried, i, 1) for i in (0, 4, 6)] == [8, 4, 2]
    assert [_taken_from(tried, i, 2) for i in (0, 4, 6)] == [16, 8, 4]


def test_full_servers_bids_grow_as_long_flows_last_longer():
    mu, limit = np.array([25.0, 100.0]), np.array([1.0, 4.0])
    # c² = 3: κ = ½, and a bid has doubled after a mean service time.
    grows = bind_late(100.0, mu, limit, variation=3.0).aging
    assert grows.tolist() == [[1.0, 25.0], [4.0, 100.0]]
    for noise in (0.5, 1.0, 1.1):
        assert bind_late(100.0, mu, limit, variation=noise).aging[:, 1].tolist() == [0.0, 0.0]
    # Where the limit was not seen it is tried.
    tried = bind_late(100.0, mu, limit, tried=np.array([2.0, 4.0]), variation=3.0)
    assert tried.aging[:, 1].tolist() == [0.0, 100.0]


def test_bids_age_where_times_have_heavy_tails_and_not_where_they_are_exponential():
    heavy, light = Watched(), Watched()
    run(world(0.7, 1, Hyperexponential(0.5, 0.001, 0.039)), policy=heavy)
    run(world(0.7, 1, Exponential(0.02)), policy=light)
    aging = heavy.decided[-1].aging
    assert (aging[:, 0] == 1.0).all()
    # c² = 2.8: κ = 0.47, twice that in a mean service time; not of a server whose limit was not seen.
    rates = aging[:, 1] * 0.02 / np.array([1, 1, 1, 1, 2, 2, 4, 4])
    assert (rates > 0).sum() >= 6
    assert rates[rates > 0] == pytest.approx(0.95, rel=0.3)
    assert light.decided[-1].reserve is not None
    assert light.decided[-1].aging is None or light.decided[-1].aging[:, 1].max() * 0.02 < 4 * 0.3


def test_the_variation_of_times_is_that_of_the_demand_on_servers_of_any_speed():
    for demand, squared in (
        (Deterministic(0.02), 0.0),
        (Exponential(0.02), 1.0),
        (Hyperexponential(0.5, 0.001, 0.039), 2.8),
    ):
        policy = Watched()
        run(world(0.7, 4, demand), policy=policy)
        assert policy.late.speeds.variation() == pytest.approx(squared, rel=0.2, abs=0.05)


def test_times_of_nothing_have_a_variation():
    speeds = Speeds()
    speeds.match(np.ones(2, dtype=bool))
    speeds.update(np.zeros(1000, dtype=np.intp), np.zeros(1000))
    assert speeds.variation() == 0.0


@pytest.fixture
def rates(monkeypatch):
    """The servers' rates of each decision that held flows."""
    told = []

    def bound(lam, mu, *others):
        told.append(mu)
        return bind_late(lam, mu, *others)

    monkeypatch.setattr("controlplane.reserve.bind_late", bound)
    return told


def test_what_logarithms_say_of_a_service_time_is_used_whole(rates, monkeypatch):
    monkeypatch.setattr(Speeds, "refine", lambda self, s, samples: np.array([0.001, 0.02, 0.02]))
    run(world(0.8, 1, speeds=(1, 1, 1), flows=2000))
    assert rates[-1] == pytest.approx([1000.0, 50.0, 50.0])


def test_the_way_is_not_taken_for_service(rates):
    # 0.4 ms of the way there and back, beside services of 20 and 5 ms: 2 and 7 % of their sum.
    found = []
    for seed in range(1, 5):
        run(replace(world(0.8, 1, speeds=(1, 1, 4, 4), delay=0.0002), seed=seed))
        found += rates[len(rates) // 2 :]
        rates.clear()
    slow, fast = np.mean(found, axis=0).reshape(2, 2).mean(axis=1) * 0.02
    assert (slow, fast) == pytest.approx((1.0, 4.0), rel=0.03)


def test_a_server_that_is_further_off_is_the_slower_for_it(rates, monkeypatch):
    # 20 ms of service, 0.4 ms of the way to four servers and 4 ms to one: what is usual is taken off all.
    monkeypatch.setattr(Speeds, "refine", lambda self, s, samples: np.array([0.0204] * 4 + [0.024]))
    w = world(0.8, 1, speeds=(1,) * 5, delay=0.0002, flows=2000)
    run(replace(w, servers=[*w.servers[:4], replace(w.servers[4], delay=0.002)]))
    assert 1.0 / rates[-1] == pytest.approx([0.02] * 4 + [0.0236])


def test_a_server_that_is_far_off_has_more_in_flight_than_workers():
    """Its flows never overtake, and yet one at a time would leave it idle for the way there and back."""
    limits_seen = []
    for seed in (1, 2):
        w = world(0.95, 1, speeds=(1,) * 9, delay=0.0001, flows=12_000, warmup=5.0)
        policy = Watched()
        servers = [*w.servers[:8], replace(w.servers[8], delay=0.005)]
        run(replace(w, servers=servers, seed=seed), policy=policy)
        late = [d.fitted["hold_from"] for d in policy.decided if "hold_from" in d.fitted]
        limits_seen.append(np.mean(late[len(late) // 2 :], axis=0))
    far, near = np.mean(limits_seen, axis=0)[8], np.mean(limits_seen, axis=0)[:8]
    assert far > 1.5
    assert near.max() < 1.1


def test_a_server_that_swaps_its_speed_is_followed():
    flows = 30_000
    w = world(0.7, 4, flows=flows)
    half = flows / 2 / w.arrivals.mean_rate
    swap = (SpeedChange(half, 7, 1.0), SpeedChange(half, 0, 4.0))
    w = replace(w, events=swap, warmup=half + 2.0)
    assert run(w).fct.mean() <= 1.03 * run(w, "off").fct.mean()


def test_a_server_that_joins_is_used():
    w = world(0.6, 4, speeds=(1, 1, 2, 4))
    servers = [*w.servers, Server(speed=4, workers=4, present=False)]
    w = replace(w, servers=servers, events=(Join(w.warmup, 4),))
    result = run(w)
    late = result.records["server"][result.records["arrival_ns"] > w.warmup * 2e9]
    assert (late == 4).mean() > 0.2


def test_an_underestimated_worker_count_is_corrected():
    class Mistaken(Watched):
        """Its servers seem to have half of their workers until a third of the run is over."""

        def decide(self, observation: Observation) -> Directive:
            o = observation
            if o.now < 3.0:
                # Nothing from more than two in flight was ever seen.
                for name in ("time", "completions", "arrivals", "found_fct"):
                    getattr(o.profile, name)[:, 3:] = 0.0
            return super().decide(o)

    policy = Mistaken()
    run(world(0.85, 4, flows=30_000), policy=policy)
    k = policy.decided[-1].fitted["k"]
    assert (k[4:] > 3.2).all()


def test_a_limit_is_the_nearest_number_of_workers_and_one_more_while_little_is_known():
    k = np.array([1.4, 1.6, 4.3, 8.6])
    assert limits(k, np.full(4, 1000.0)).tolist() == [1, 2, 4, 8]  # of 8.6 the way there and back has 0.2
    assert limits(k, np.full(4, 20.0)).tolist() == [2, 2, 4, 9]


@pytest.mark.parametrize(("workers", "holds"), [(1, True), (4, False)])
def test_a_way_that_one_worker_bears_is_too_long_for_four(workers, holds):
    # 0.4 ms there and back, 5 % of the time of a flow: more than 8 %/√4, less than 8 %.
    w = world(0.85, workers, flows=10_000, delay=0.0002)
    auto, off = (run(w, reserve).fct.tobytes() for reserve in ("auto", "off"))
    assert (auto != off) == holds


def test_gold_is_not_passed_by_silver_while_pipes_are_full():
    w = world(0.95, 4, flows=40_000, gold=0.1, bronze=0.3)
    result = run(w)
    classes = result.classes[len(result.records) - len(result.fct) :]
    gold, silver, bronze = (result.fct[classes == i].mean() for i in range(3))
    assert gold < 0.9 * silver
    assert silver < bronze


def test_unequal_workers_are_told_apart_within_seconds():
    # Eight servers of one speed, 0.2 ms away. One that is taken for a worker more keeps a flow waiting.
    workers, ratios, mean, way = [1, 1, 2, 2, 4, 4, 8, 8], [], 0.03, 0.0002
    for seed in range(12):
        servers = [Server(workers=k, delay=way) for k in workers]
        arrivals = Poisson(0.8 * sum(workers) / mean)
        found = World(servers, arrivals, Exponential(mean), seed=seed, flows=13_600, warmup=5.0, rings=True)
        result = Simulation(found, ring_slots=16384).run(Adaptive(), reserve="auto")
        begun, work = result.records["arrival_ns"], result.records["work_ns"] * 1e-9
        best = central_queue(begun, work, [1.0] * 8, workers)[begun >= 5_000_000_000]
        ratios.append((result.fct.mean() - 2.0 * way) / best.mean())
    assert np.mean(ratios) < 1.0075


def test_by_default_it_holds_with_one_balancer_and_not_with_two():
    w = world(0.85, 1, flows=6_000)
    auto, learned, off = (run(w, reserve).fct.tobytes() for reserve in ("auto", "learned", "off"))
    assert auto == learned != off
    two = world(0.85, 1, flows=6_000, balancers=2)
    assert run(two, "auto").fct.tobytes() == run(two, "off").fct.tobytes()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_shared_cores_with_heavy_tails_do_not_pass_for_queues(seed):
    """A limit that was raised because flows overtook must not wipe what speaks for sharing."""
    w = replace(world(0.8, 4, BoundedPareto(0.02, ratio=1000.0), flows=60_000, service="sharing"), seed=seed)
    policy = Watched()
    run(w, policy=policy)
    held = [directive.reserve is not None for directive in policy.decided]
    assert np.mean(held) < 0.15


@pytest.mark.parametrize(("workers", "backlog", "demand"), [(2, 3, Exponential(0.02)), (4, 4, Deterministic(0.02))])
def test_a_server_that_refuses_flows_is_not_sent_as_many_again(workers, backlog, demand):
    """Refused flows end at once, as if it bore more; and a long queue would send more there (DEEPER)."""
    w = world(0.9, workers, demand, speeds=(1, 1, 2, 4))
    w = replace(w, servers=[replace(server, backlog=backlog) for server in w.servers])
    refused, without = run(w).totals.overflowed, run(w, "off").totals.overflowed
    assert without > 200
    assert refused < 0.2 * without


def failing(rows: list[tuple[int, int, int]]) -> np.ndarray:
    """Return flow records of (server, found, outcome)."""
    out = np.zeros(len(rows), dtype=FLOW_RECORD)
    for i, (server, found, outcome) in enumerate(rows):
        out["server"][i], out["found"][i], out["outcome"][i] = server, found, outcome
    return out


def test_from_where_a_server_refuses_is_what_failed_beyond_its_limit_and_below_what_ended():
    late, same = LateBinding(), np.ones(2, dtype=bool)
    late._limit = np.array([2.0, 2.0])
    on = SimpleNamespace(n_servers=2, active=same)
    # One below the limit says nothing of its room; 5 and 6 do; the other server fails none.
    late._refuse(on, same, failing([(0, 1, 1), (0, 6, 2), (0, 5, 1), (1, 9, 0)]))
    assert np.floor(late._refused).tolist() == [5.0, np.inf]
    # Flows that failed for a reason of their own: others ended there.
    late._refuse(on, same, failing([(0, 7, 0), (0, 4, 0)]))
    assert np.floor(late._refused).tolist() == [8.0, np.inf]
    # It came back.
    late._refuse(SimpleNamespace(n_servers=2, active=np.array([False, True])), same, failing([]))
    assert late._refused.tolist() == [np.inf, np.inf]


def test_no_flow_goes_where_one_would_be_refused():
    found = bind_late(380.0, np.full(4, 100.0), np.full(4, 2.0), refused=np.array([np.inf, 4.0, 3.0, 2.0]))
    least = [next((n for n in range(12) if _taken_from(found, i, n) is None), 12) for i in range(4)]
    assert least == [12, 4, 3, 2]
