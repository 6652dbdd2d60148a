"""The C side of the vector: it reads what Python reads of the same segments; the same seed gives the same bytes."""

import weakref
from pathlib import Path

import numpy as np
import pytest

from controlplane.env.simulated import SimulatedSource
from controlplane.observation import Observer
from dataplane._dataplane import lib
from dataplane.simulator import Crash, Poisson, Server, World
from shm_layout.features import read_features
from tests.c_build import ASAN_UBSAN, ROOT, SEGMENT_SOURCES, build_c, has_compiler, run_c
from tests.env.worlds import eventful, farm

C_SOURCES: list[str | Path] = [
    "tests/env/vectors.c",
    *SEGMENT_SOURCES,
    *(path for part in ("core", "sim") for path in sorted((ROOT / "dataplane" / part).glob("*.c"))),
]


def generators(n, seed=0):
    return {i: np.random.default_rng(seed + i) for i in range(n)}


def source_of(world, replicas=1, **options):
    given = {"interval": 0.05, "histogram": True}
    return SimulatedSource(
        [world] * replicas, options.pop("servers", len(world.servers)), world.balancers, **given | options
    )


@pytest.mark.parametrize("slots", [1, 16, 128])
def test_features_are_those_of_the_controllers_reader(slots):
    """Through crashes, joins, leaves and reused slots; 32-bit floats, so seven digits."""
    source = source_of(eventful(), servers=8, reservoir_slots=slots)
    source.reset(generators(1))
    rng = np.random.default_rng(5)
    for _ in range(60):
        source.orders.base[:] = np.cumsum(rng.uniform(0, 1, source.orders.base.shape), axis=2)
        reading = source.step()
        segment = source.simulations[0].segments[0]
        expected = read_features(segment)
        observation = Observer(segment).read(source.simulations[0].now_ns)
        assert reading.features[0, :6] == pytest.approx(expected.values, rel=2e-6, abs=1e-12)
        assert (reading.active[0, :6] == observation.active).all()
        assert reading.counters[0, :6, 0] == pytest.approx(observation.flows)
        assert reading.counters[0, :6, 1] == pytest.approx(observation.outcomes[:, :2].sum(axis=1))
        assert reading.counters[0, :6, 2] == pytest.approx(observation.fct_sum)
        assert reading.counters[0, :6, 3] == pytest.approx(observation.outcomes[:, 1:5].sum(axis=1))
        assert (reading.histogram[0] == observation.histogram.sum(axis=0)).all()
        assert not reading.features[0, 6:].any()
        assert not reading.active[0, 6:].any()


@pytest.mark.parametrize("servers", [1, 4, 13, 200])
def test_in_a_wide_environment_no_directive_is_refused(servers):
    """Worlds have other numbers of servers than the environment has rows."""
    world = World([Server()] * servers, Poisson(1.0), farm().demand, duration=1e6).at_load(0.5)
    source = source_of(world, servers=256)
    source.reset(generators(1))
    for mode in (lib.VECTOR_CURVES, lib.VECTOR_BIDS, lib.VECTOR_ALIAS, lib.VECTOR_WRR):
        source.orders.mode[:] = mode
        for _ in range(3):
            source.step()
    (worker,) = source.simulations[0].segments[0].read_workers()
    assert worker["rejected"].sum() == 0
    assert worker["directive_sequence"] >= 11  # the last one is adopted with the next flow
    assert not worker["fallback_active"]


def test_features_stay_right_over_many_half_lives():
    """The reference time of the weights moves before they overflow."""
    source = source_of(farm(2), half_life=0.001)
    source.reset(generators(1))
    for _ in range(40):  # 50 half lives each
        reading = source.step()
    expected = read_features(source.simulations[0].segments[0], half_life=0.001)
    assert reading.features[0] == pytest.approx(expected.values, rel=2e-6)


def test_truth_is_the_simulators():
    source = source_of(eventful())
    source.reset(generators(1))
    for _ in range(15):
        reading = source.step()
    servers = source.simulations[0].servers()
    assert (reading.truth[0, :, 0] == servers["in_server"]).all()
    assert (reading.truth[0, :, 1] == servers["busy"]).all()
    assert reading.truth[0, :, 4] == pytest.approx(servers["busy_ns"] * 1e-9)
    assert reading.truth[0, :, 5] == pytest.approx(servers["capacity_ns"] * 1e-9)


def test_the_same_seed_gives_the_same_bytes():
    def run():
        source = source_of(eventful(), 3)
        source.reset(generators(3))
        return b"".join(source.step().features.tobytes() for _ in range(20))

    assert run() == run()


def test_replicas_do_not_touch_each_other():
    def run(replicas):
        source = source_of(eventful(), replicas)
        source.reset(generators(replicas))
        return [source.step().features[0].tobytes() for _ in range(20)]

    assert run(1) == run(5)


def test_replicas_that_are_not_told_to_run_stay():
    source = source_of(farm(), 3)
    source.reset(generators(3))
    before = source.step().features.copy()
    reading = source.step([1])
    assert (reading.features[[0, 2]] == before[[0, 2]]).all()
    assert (reading.features[1] != before[1]).any()
    assert reading.now_ns.tolist() == [50_000_000, 100_000_000, 50_000_000]


def test_what_a_step_returned_stays_through_the_next_one_and_a_reset():
    source = source_of(farm(), 2)
    source.reset(generators(2))
    first = source.step()
    kept = first.features.copy()
    source.reset({0: np.random.default_rng(9)})
    source.step([1])
    assert (first.features == kept).all()


def test_a_world_that_ends_says_so():
    source = source_of(farm(flows=50, duration=None), 1)
    source.reset(generators(1))
    ended = [bool(source.step().finished[0]) for _ in range(60)]
    assert ended[-1]
    assert ended == sorted(ended)


def test_a_world_that_does_not_fit_is_refused():
    source = SimulatedSource([farm(6)], 4, 1, interval=0.1)
    with pytest.raises(ValueError, match="6 servers"):
        source.reset(generators(1))


def test_nobody_up_is_no_error():
    servers = [Server(), Server()]
    world = World(
        servers, Poisson(100.0), farm().demand, duration=1e6, events=(Crash(0.1, 0), Crash(0.1, 1)), detect=0.01
    )
    source = source_of(world)
    source.reset(generators(1))
    for _ in range(10):
        reading = source.step()
    assert not reading.active.any()


def test_the_sanitizers_find_nothing_in_the_vector():
    if not has_compiler("gcc"):
        pytest.skip("no gcc on this machine")
    done = run_c(build_c("vectors", C_SOURCES, (*ASAN_UBSAN, "-ffp-contract=off", "-lm")))
    assert done.returncode == 0, done.stderr


def test_gcc_and_clang_give_the_same_bytes():
    outputs = []
    for cc in ("gcc", "clang"):
        if not has_compiler(cc):
            pytest.skip(f"no {cc} on this machine")
        done = run_c(build_c("vectors", C_SOURCES, ("-ffp-contract=off", "-lm"), cc))
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 4


def test_an_episode_that_is_over_is_freed_at_once():
    source = source_of(farm())
    source.reset(generators(1))
    source.observe(0)
    before = weakref.ref(source.simulations[0])
    source.reset(generators(1))
    source.observe(0)
    assert before() is None
