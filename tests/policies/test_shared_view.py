"""The shared view: a balancer that sees its own flows alone learns what the others' cost it, and where to keep away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.learner import Learner
from controlplane.policies import adaptive
from controlplane.policies.adaptive import Adaptive
from controlplane.policy import CURVE_N
from controlplane.shared_view import SharedView
from dataplane.simulator import Deterministic, Exponential, Poisson, Server, Simulation, World
from shm_layout.layout import FLOW_RECORD, OUTCOMES
from tests.policies.observations import observation

CLASSIC = tuple(4.0 if i % 4 == 0 else 1.0 for i in range(16))


class Former(Adaptive):
    """(K·n + ½)/ŵ."""

    def __init__(self) -> None:
        super().__init__()
        self.shared.decide = lambda *_: None  # type: ignore[method-assign]


def world(seed=1, speeds=CLASSIC, balancers=4, load=0.9, flows=60_000, **fields):
    mean = 0.01 * float(np.mean(speeds))
    workers = fields.pop("workers", 1)
    service = fields.pop("service", "fifo")
    rate = load * workers * sum(speeds) / mean
    servers = [Server(speed=s, workers=workers, service=service) for s in speeds]
    given = {"demand": Exponential(mean), "rings": True, "warmup": 0.2 * flows / rate}
    return World(servers, Poisson(rate), seed=seed, flows=flows, balancers=balancers, **(given | fields))


def run(policy, w):
    return Simulation(w, ring_slots=8192).run(policy)


def records(server, begin, end, found=None, ids=None):
    """Return flow records of flows that ended well, in the order of their ends."""
    out = np.zeros(len(begin), dtype=FLOW_RECORD)
    out["server"] = server
    out["server_id"] = out["server"] + 1 if ids is None else ids
    out["dispatched_ns"], out["closed_ns"] = np.asarray(begin) * 1e9, np.asarray(end) * 1e9
    out["found"] = 0 if found is None else found
    return out[np.argsort(out["closed_ns"], kind="stable")]


def seen(n, *batches):
    """Return a view that took these records in, one batch a look."""
    view = SharedView()
    closed = np.zeros((n, len(OUTCOMES)))
    for batch in batches:
        closed = closed.copy()
        closed[:, 0] += np.bincount(batch["server"], minlength=n)
        o = observation(n, balancers=4, outcomes=closed, read_records=lambda b=batch: b)
        view.decide(o, learner_of(n))
    return view


def learner_of(n, rate=10.0):
    learner = Learner()
    learner.update(observation(n))
    learner.arrival_rate = rate
    return learner


def shared_server(rng, service, own_rate, others_rate, flows, pairs=0.0):
    """Own flows' begin, end and found at a FIFO server that others use, too; pairs: share of own flows sent in twos."""
    gaps = np.where(rng.random(flows) < pairs, 0.05 * service, rng.exponential(1.0 / own_rate, flows))
    own = 1.0 + np.cumsum(gaps)
    others = 1.0 + np.cumsum(rng.exponential(1.0 / others_rate, int(2 * others_rate * own[-1]) + 10))
    times = np.concatenate([own, others[others < own[-1]]])
    mine = np.arange(len(times)) < flows
    order = np.argsort(times)
    times, mine = times[order], mine[order]
    ends, free = np.empty(len(times)), 0.0
    for i, (t, s) in enumerate(zip(times, rng.exponential(service, len(times)), strict=True)):
        free = ends[i] = max(free, t) + s
    begin, end = times[mine], ends[mine]
    found = np.arange(flows) - np.searchsorted(end, begin)
    return begin, end, found


def test_four_balancers_that_are_told_nothing_do_better_than_k_n_plus_a_half():
    ratios = []
    for seed in (1, 2):
        w = world(seed)
        ratios.append(run(Adaptive(), w).fct.mean() / run(Former(), w).fct.mean())
    assert np.mean(ratios) < 0.97


def test_balancers_part_company_without_being_told_who_is_who():
    result = run(Adaptive(), world())
    late = result.records[len(result.records) // 2 :]
    flows = np.zeros((4, 16))
    np.add.at(flows, (late["balancer"], late["server"]), 1)
    most = (flows / flows.sum(axis=0)).max(axis=0)
    slow = np.array(CLASSIC) == 1.0
    # One of four has most of a slow server's flows; where all go everywhere it would have a quarter of them.
    assert np.median(most[slow]) > 0.6
    owners = np.bincount(flows.argmax(axis=0)[slow], minlength=4)
    assert (owners > 0).all()


def test_service_is_told_from_the_wait_for_flows_that_were_never_seen():
    rng = np.random.default_rng(3)
    # 30 % of this server's capacity are one's own flows, 55 % are others'.
    begin, end, found = shared_server(rng, 0.02, 15.0, 27.0, 3000, pairs=0.15)
    step = 200
    batches = [
        records(np.zeros(step, np.uint32), begin[i : i + step], end[i : i + step], found[i : i + step])
        for i in range(0, len(begin), step)
    ]
    view = seen(1, observed_none(), *batches)
    first = view._delay[0, 0] / view._found[0, 0]
    assert first > 2.0 * 0.02  # what a flow takes that finds none of one's own
    assert view.service()[0][0] == pytest.approx(0.02, rel=0.25)


def observed_none():
    return np.zeros(0, dtype=FLOW_RECORD)


def test_a_server_of_ones_own_is_seen_as_it_is():
    rng = np.random.default_rng(4)
    begin, end, found = shared_server(rng, 0.02, 20.0, 1e-6, 1500)
    view = seen(1, observed_none(), records(np.zeros(len(begin), np.uint32), begin, end, found))
    assert view.service()[0][0] == pytest.approx(0.02, rel=0.15)


def test_the_bid_is_the_wait_and_at_low_load_the_service_too():
    view = SharedView()
    s, lam = np.array([0.02, 0.01]), np.array([25.0, 0.0])
    delay = np.array([[0.02, 0.06], [0.03, 0.05]])
    # ρ = ½: (D − s/2)/√(1 − λs) = (0.01, 0.05)/√½ and (0.025, 0.045)
    np.testing.assert_allclose(view.bids(delay, s, lam, 0.5), [[0.01 * np.sqrt(2), 0.05 * np.sqrt(2)], [0.025, 0.045]])
    np.testing.assert_allclose(view.bids(delay, s, lam * 0.0, 1.0), [[0.0, 0.04], [0.02, 0.04]])


def test_without_records_it_bids_as_if_the_others_had_as_many():
    directive = Adaptive().decide(observation(2, balancers=4))
    assert directive.curves is not None
    np.testing.assert_allclose(directive.curves, (4 * CURVE_N + 0.5) / directive.fitted["capacity"][:, None])


@pytest.mark.parametrize(
    "fields",
    [
        {"workers": 4},  # overtaking
        {"service": "sharing"},
        {"workers": 4, "demand": Deterministic(0.0175)},  # no overtaking, but side by side
    ],
)
def test_servers_that_work_side_by_side_get_bids_by_capacity_and_load(fields):
    w = world(flows=30_000, load=0.8, **fields)
    now, former = run(Adaptive(), w).fct.mean(), run(Former(), w).fct.mean()
    assert 0.94 * former < now < 1.03 * former


def test_at_moderate_load_own_flows_weigh_less_where_servers_work_side_by_side():
    w = world(flows=30_000, load=0.6, workers=4, speeds=(1, 1, 1, 1, 2, 2, 4, 4))
    assert run(Adaptive(), w).fct.mean() < 0.93 * run(Former(), w).fct.mean()


@pytest.mark.parametrize(
    ("fields", "least", "most"),
    [
        ({"balancers": 3, "workers": 8, "load": 0.55, "speeds": (1, 1, 1, 1, 2, 2, 4, 4)}, 0.0, 0.93),
        ({"balancers": 4, "workers": 1, "load": 0.8}, 0.98, 1.02),  # one core: whoever comes slows the others
    ],
)
def test_of_more_than_two_own_flows_weigh_less_where_most_have_a_core_for_themselves(monkeypatch, fields, least, most):
    w = world(flows=40_000, service="sharing", **fields)
    now = run(Adaptive(), w).fct.mean()
    monkeypatch.setattr(adaptive, "CORES_C", 0.0)
    assert least < now / run(Adaptive(), w).fct.mean() < most


def test_with_no_server_to_choose_the_bids_of_more_than_two_balancers_are_finite(monkeypatch):
    policy = Adaptive()
    monkeypatch.setattr(SharedView, "parallel", True)
    directive = policy.decide(observation(2, balancers=4, active=np.zeros(2, dtype=bool)))
    assert directive.curves is not None
    assert np.isfinite(directive.curves).all()


def test_what_a_server_was_is_forgotten_when_the_learner_sees_that_it_changed():
    rng = np.random.default_rng(5)
    begin, end, found = shared_server(rng, 0.02, 20.0, 1e-6, 300)
    view = seen(2, observed_none(), records(np.zeros(len(begin), np.uint32), begin, end, found))
    assert view._found[0].sum() > 100
    learner = learner_of(2)
    view._held = np.array([200.0, 0.0])
    learner.profile.completions[0, 1] = 8.0
    view.decide(observation(2, balancers=4, read_records=observed_none), learner)
    assert view._found[0].sum() == 0.0


def test_flows_from_before_a_change_count_until_one_ends_that_came_after():
    view, learner = SharedView(), learner_of(2)

    def look(now, held, begin, end):
        view._held = np.array([held, 0.0])  # completions of the learner's that stood for server 0 the look before
        batch = records(np.zeros(len(begin), np.uint32), begin, end)
        view.decide(observation(2, now=now, balancers=4, read_records=lambda: batch), learner)
        return view._found[0, 0], view._delay[0, 0]

    learner.profile.completions[0, 1] = 8.0
    look(10.0, 8.0, [9.0, 9.1], [9.01, 9.11])
    # Now its past is cut from 200 completions to 8. What is still in its queue ends late, and tells how late.
    assert look(11.0, 200.0, [10.2], [10.9]) == pytest.approx((1.0, 0.7))
    assert look(12.0, 8.0, [10.3], [11.5]) == pytest.approx((2.0, 1.9), rel=0.02)
    # The first that came after the change is through: the queue that it found there is its own measure.
    assert look(13.0, 8.0, [10.8, 11.2], [12.0, 12.05]) == pytest.approx((1.0, 0.85))
    assert look(14.0, 8.0, [12.5], [12.55]) == pytest.approx((2.0, 0.9), rel=0.02)


def pairs_of(view, n=4):
    """Return for which servers the bid for a second flow is that for a first at one of some looks, (n,)."""
    paired = np.zeros(n, dtype=bool)
    for turn in range(3):
        view.seen = 1000.0 + turn
        curves = view._view(observation(n, balancers=4), 10.0).curves
        paired |= curves[:, 1] == curves[:, 0]
    return paired


def test_pairs_are_sent_where_s_is_not_known_but_not_first_of_all():
    view = SharedView()
    view._allocate(4)
    view._found[:, :2], view._delay[:, :2] = [20.0, 10.0], [0.4, 0.4]
    s, w = np.array([0.01, 0.01, 0.04, 0.04]), np.array([4.0, 100.0, 4.0, 100.0])
    for row in range(4):  # gaps that are nearly none, after each of which the next flow took s
        view._gaps[row] = w[row] * np.array([1.0, 1e-4, s[row], 2e-8, 1e-4 * s[row], 2.0 * s[row] ** 2])
    assert pairs_of(view).tolist() == [True, False, True, False]
    # Weights that tell the speeds leave less to find out by pairs: enough gaps, though not as many.
    view._weight = np.log([1.6, 1.6, 0.4, 0.4])
    view._gaps[[0, 2]] *= 5.0
    assert not pairs_of(view).any()
    view._weight[:] = 0.0
    assert pairs_of(view).tolist() == [True, False, True, False]
    # What a flow that finds none has to expect is learned first.
    view._found *= 0.5
    view._delay *= 0.5
    assert not pairs_of(view).any()


def test_pairs_are_sent_too_where_no_gap_at_all_was_short():
    view = SharedView()
    view._allocate(4)
    view._found[:, 0], view._delay[:, 0] = 30.0, 0.6
    assert pairs_of(view).all()
    # Of one alone nobody knows how far the others differ.
    view._gaps[0] = 5.0 * np.array([1.0, 1e-4, 0.01, 2e-8, 1e-6, 2e-4])
    assert pairs_of(view).all()


def test_a_weight_that_the_learner_distrusts_draws_nothing():
    view, learner = SharedView(), learner_of(3)
    o = observation(3, balancers=4, weight=np.array([4.0, 1.0, 1.0]), read_records=observed_none)
    view.decide(o, learner)
    np.testing.assert_allclose(np.exp(view._weight), [2.0, 0.5, 0.5])
    learner["changed"][0] = 1.0
    view.decide(o, learner)
    np.testing.assert_allclose(np.exp(view._weight), [1.5, 0.75, 0.75])


def test_another_server_in_the_slot_inherits_nothing_and_the_others_keep_theirs():
    rng = np.random.default_rng(6)
    begin, end, found = shared_server(rng, 0.02, 20.0, 1e-6, 300)
    one = records(np.zeros(300, np.uint32), begin, end, found)
    two = records(np.ones(300, np.uint32), begin, end, found)
    view = seen(2, observed_none(), one, two)
    ids = np.array([1, 9, 10], dtype=np.uint64)
    view.decide(observation(3, balancers=4, ids=ids, read_records=observed_none), learner_of(3))
    assert view._found[0].sum() > 100
    assert view._found[1].sum() == view._found[2].sum() == 0.0


def test_records_that_were_lost_make_no_pairs():
    rng = np.random.default_rng(7)
    begin, end, found = shared_server(rng, 0.02, 20.0, 1e-6, 300)
    half = records(np.zeros(300, np.uint32), begin, end, found)[::2]
    view = SharedView()
    o = observation(1, balancers=4)
    view.decide(replace(o, read_records=observed_none), learner_of(1))
    outcomes = np.zeros((1, len(OUTCOMES)))
    outcomes[0, 0] = 300
    view.decide(replace(o, read_records=lambda: half, outcomes=outcomes), learner_of(1))
    assert view._gaps.sum() == 0.0
    assert view._found.sum() > 0.0


@settings(max_examples=40)
@given(
    st.integers(1, 5),
    st.integers(0, 60),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-6, 1e-3, 1.0, 1e4]),
    st.integers(2, 8),
)
def test_bids_are_finite_and_never_fall_whatever_the_records_say(n, flows, seed, scale, balancers):
    rng = np.random.default_rng(seed)
    view, learner = SharedView(), learner_of(n, rate=rng.uniform(0.0, 1e4))
    for look in range(3):
        begin = 1.0 + rng.uniform(0.0, scale, flows)
        batch = records(
            rng.integers(0, n + 2, flows), begin, begin + rng.uniform(0.0, scale, flows), rng.integers(0, 99, flows)
        )
        batch["outcome"] = rng.integers(0, 3, flows)
        outcomes = np.zeros((n, len(OUTCOMES)))
        outcomes[0, 0] = flows * look
        active = rng.random(n) < 0.8
        o = observation(n, balancers=balancers, outcomes=outcomes, active=active, read_records=lambda b=batch: b)
        found = view.decide(o, learner)
        if found is not None:
            assert found.curves.shape == (n, len(CURVE_N))
            assert np.isfinite(found.curves).all()
            assert (found.curves >= 0.0).all()
            assert (np.diff(found.curves, axis=1) >= 0.0).all()
            assert 0.0 <= found.utilisation <= 1.0


def test_more_than_two_before_servers_of_several_workers_take_idle_ones_for_less_alike():
    """(K·n + 1)/ŵ once own flows overtake each other, (K·n + ½)/ŵ before."""
    seen = []

    class Kept(Adaptive):
        def decide(self, o):
            directive = super().decide(o)
            seen.append((self.shared.parallel, directive.curves[:, 0] * self.learner.fit.capacity))
            return directive

    run(Kept(), world(speeds=(1.0, 1.0, 2.0, 4.0), workers=4, load=0.85))
    assert seen[0][0] is False
    assert seen[-1][0]
    np.testing.assert_allclose(seen[1][1], 0.5)
    np.testing.assert_allclose(seen[-1][1], 1.0)
