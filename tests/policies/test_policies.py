"""Every policy decides validly on any observation: any number of servers, none, all down, and counters that are
garbage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane import registry
from controlplane.directive import DirectiveError, check, to_data
from controlplane.policy import CURVE_N, Directive, Observation, Policy, Profile
from shm_layout.layout import CURVE_POINTS, HISTOGRAM_BUCKETS, OUTCOMES
from shm_layout.payload import check_directive
from tests.learned.files import make
from tests.policies.observations import observation, profile

NAMES = sorted(registry.BUILT_IN)


def decides_validly(policy: Policy, o: Observation) -> None:
    directive = policy.decide(o)
    check(directive, o.n_servers)
    if o.n_servers:
        # What the data plane's own check says of the payload.
        check_directive(to_data(directive, o.ids, table_room=65537, policy=policy.name, sequence=1).encode())


@pytest.mark.parametrize("aging", [np.zeros(3), np.zeros((2, 2)), np.full((3, 2), np.nan), np.full((3, 2), -1.0)])
def test_aging_that_no_data_plane_would_take_is_refused(aging):
    with pytest.raises(DirectiveError, match="aging: "):
        check(Directive(rule="bids", curves=np.ones((3, CURVE_POINTS)), aging=aging), 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("servers", [0, 1, 2, 64, 4096])
def test_any_number_of_servers(name, servers):
    policy = make(name)
    decides_validly(policy, observation(servers))
    decides_validly(policy, observation(servers, now=100.2))


@pytest.mark.parametrize("name", NAMES)
def test_all_servers_down_and_free_slots(name):
    policy = make(name)
    ids = np.array([1, 0, 3], dtype=np.uint64)
    decides_validly(policy, observation(3, ids=ids, active=np.zeros(3, dtype=bool), weight=np.zeros(3)))


@pytest.mark.parametrize("name", NAMES)
def test_servers_come_and_go_and_counters_begin_anew(name):
    policy = make(name)
    busy = np.full((4, len(CURVE_N)), 7.0)
    decides_validly(policy, observation(4, flows=np.full(4, 900.0), profile=Profile(busy, busy, busy, busy)))
    decides_validly(policy, observation(4, now=101.0))
    decides_validly(policy, observation(2, now=102.0, ids=np.array([9, 2], dtype=np.uint64)))
    decides_validly(policy, observation(6, now=103.0, flows=np.arange(6.0)))
    decides_validly(policy, observation(6, now=103.0))  # no time passed


counts = st.sampled_from([0.0, 1.0, 17.0, 1e6, 1.8e19])


@st.composite
def garbage(draw: st.DrawFn, now: float) -> Observation:
    n = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def anything(*shape: int) -> np.ndarray:
        found = np.zeros(shape)
        for _ in range(draw(st.integers(0, 6))):
            found[tuple(rng.integers(0, s) for s in shape)] = draw(counts)
        return found

    bins = len(CURVE_N)
    histogram = anything(n, HISTOGRAM_BUCKETS)
    return observation(
        n,
        now=now,
        balancers=draw(st.sampled_from([1, 1, 4])),
        objective=draw(st.sampled_from(["mean", "tail"])),
        active=rng.random(n) < 0.7,
        weight=rng.integers(0, 257, n).astype(np.float64),
        in_flight=anything(n) % 65536,
        profile=Profile(*(anything(n, bins) for _ in range(4))),
        flows=anything(n),
        outcomes=anything(n, len(OUTCOMES)),
        fct_sum=anything(n),
        auctions_won=anything(n),
        bid_sum=anything(n),
        histogram=histogram,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(300)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_garbage_in_the_counters_is_survived(name, data):
    policy = make(name)
    for now in (10.0, 10.2, 9.0, 50.0):
        decides_validly(policy, data.draw(garbage(now)))


def test_lotteries_leave_out_who_may_take_no_flows():
    o = observation(3, active=np.array([True, False, True]), weight=np.array([1.0, 5.0, 3.0]))
    for name in ("wcmp", "wrr", "maglev"):
        assert registry.create(name).decide(o).weights == pytest.approx([1.0, 0.0, 3.0])


def test_generalised_shortest_expected_delay_counts_the_balancers():
    o = observation(2, weight=np.array([1.0, 4.0]), balancers=3)
    curves = registry.create({"name": "gsed", "c": 0.25}).decide(o).curves
    assert curves[1, :3] == pytest.approx([0.25 / 4, 3.25 / 4, 6.25 / 4])
    assert registry.create("sed").decide(o).curves[1, :2] == pytest.approx([1 / 4, 2 / 4])


def test_power_of_two_choices_lets_two_bid():
    directive = registry.create("random").decide(observation(5))
    assert directive.choices == 2
    assert (directive.curves == CURVE_N).all()


def test_peak_ewma_jumps_to_a_peak_and_decays_from_it():
    policy = registry.create({"name": "peak_ewma", "decay": 10.0})
    filled = np.zeros((3, HISTOGRAM_BUCKETS))
    filled[:2, 80] = 100  # 2^(80/8 + 10) ns, about 1 ms
    first = policy.decide(observation(3, histogram=filled)).fitted["cost"]
    assert first[0] == pytest.approx(1.05e-3 * 1.045, rel=0.01)
    assert first[2] == pytest.approx(first[0])  # unknown: as the others
    peaked = filled.copy()
    peaked[0, 120] += 1  # one answer of 34 ms
    after = policy.decide(observation(3, now=100.2, histogram=peaked)).fitted["cost"]
    assert after[0] > 30e-3
    later = policy.decide(observation(3, now=110.2, histogram=peaked)).fitted["cost"]
    assert later[0] == pytest.approx(after[0] * np.exp(-1), rel=1e-6)


def test_active_wcmp_takes_from_the_loaded_and_gives_to_the_idle():
    policy = registry.create("awcmp")
    time = np.zeros((2, len(CURVE_N)))
    for step in range(1, 60):
        time = time.copy()
        time[0, 8] += 0.5
        time[1, 1] += 0.5
        o = observation(2, now=100 + step * 0.5, profile=profile(2, time=time), in_flight=np.array([8.0, 1.0]))
        weights = policy.decide(o).weights
    assert weights[1] > 4 * weights[0]
