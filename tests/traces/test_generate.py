"""Made-up traces: the same bytes as published, and the figures that their kinds promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.commands.trace import KINDS as KINDS_IN_HELP
from testbed.traces.generate import KINDS, Recipe, generate, generated
from testbed.traces.record import TraceError, checksum
from testbed.traces.statistics import Statistics

PAGE = (Path(__file__).parents[2] / "docs/traces.md").read_text()
PUBLISHED = dict(re.findall(r"^\| `(\w+)` \|.*\| `([0-9a-f]{64})` \|$", PAGE, re.MULTILINE))


def index_at(records, seconds: float) -> float:
    statistics = Statistics()
    statistics.add(records)
    rows = statistics.as_json()["dispersion"]
    return next(row["index"] for row in rows if row["window_s"] == pytest.approx(seconds))


def rate_of(records) -> float:
    return (len(records) - 1) / (np.ptp(records["t_ns"]) * 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kinds_bytes_are_those_published(kind):
    assert checksum(generate(Recipe(kind))) == PUBLISHED[kind]


def test_a_processors_vector_units_change_no_bit():
    code = (
        "from testbed.traces.generate import *\nfrom testbed.traces.record import checksum\n"
        "for kind in KINDS:\n    print(kind, checksum(generate(Recipe(kind, flows=2000))))"
    )
    built = np.show_config(mode="dicts")
    assert isinstance(built, dict)
    features = built["SIMD Extensions"]["found"]
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(features)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    plain = [f"{kind} {checksum(generate(Recipe(kind, flows=2000)))}" for kind in KINDS]
    assert done.stdout.splitlines() == plain


def test_every_kind_is_in_the_page_and_in_the_help():
    assert list(PUBLISHED) == list(KINDS) == KINDS_IN_HELP.split(", ")


def test_every_parameter_is_in_the_page():
    for kind in KINDS.values():
        for name, value in kind.shape.items():
            assert f"{name}={value:g}" in PAGE


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_the_length_cuts(kind):
    short, long = generated(kind, flows=1000, seed=5), generated(kind, flows=2500, seed=5)
    assert (long[:1000] == short).all()
    assert (generated(kind, flows=1000, seed=6)["t_ns"] != short["t_ns"]).any()
    assert (np.diff(long["t_ns"]) >= 0).all()
    assert long["t_ns"][0] >= 0
    assert (long["work"] >= 0).all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "flash"])
def test_rate_and_mean_work_are_those_asked_for(kind):
    records = generated(kind, flows=100_000, rate=2000.0, mean_work=0.02, shape=SHORT.get(kind, {}))
    assert rate_of(records) == pytest.approx(2000, rel=0.04)
    assert records["work"].mean() == pytest.approx(0.02, rel=0.05)


# Whole periods within 50 s, so that the mean is that of a period.
SHORT = {
    "mmpp2": {"sojourn": 0.02},
    "sine": {"period": 1.0},
    "diurnal": {"period": 1.0},
    "onoff": {"period": 1.0},
}


def test_at_another_rate_the_same_flows_come_closer_together():
    slow, fast = generated("poisson", flows=5000, rate=10.0), generated("poisson", flows=5000, rate=100.0)
    for name in ("work", "key"):
        assert (slow[name] == fast[name]).all()
    assert np.allclose(slow["t_ns"], fast["t_ns"] * 10.0, atol=5000 * 10)


def test_poisson_gaps_are_exponential():
    records = generated("poisson", flows=100_000, rate=1000.0)
    gaps = np.sort(np.diff(records["t_ns"])) * 1e-6
    expected = 1 - np.exp(-gaps)
    distance = np.abs(expected - np.arange(len(gaps)) / len(gaps)).max()
    assert distance < 1.36 / np.sqrt(len(gaps))  # Kolmogorov and Smirnov, 5 %
    assert index_at(records, 0.1) == pytest.approx(1, abs=0.15)


def test_bursts_last_as_long_and_are_as_strong_as_told():
    # MMPP-2: the index of dispersion grows to 1 + 2·p·(1-p)·(r1 - r0)²/(mean·(1/s0 + 1/s1)) with state share p.
    factor, share, sojourn, rate = 8.0, 0.1, 1.0, 100.0
    records = generated("mmpp2", flows=400_000, rate=rate)
    low = rate / (1 - share + share * factor)
    ends = 1 / sojourn + share / (sojourn * (1 - share))
    limit = 1 + 2 * share * (1 - share) * (low * (factor - 1)) ** 2 / (rate * ends)
    windows = 10 * ends
    assert index_at(records, 10.0) == pytest.approx(1 + (limit - 1) * (1 - 1 / windows), rel=0.25)


def test_a_sine_swings_around_its_mean():
    records = generated("sine", flows=200_000, rate=1000.0, shape={"period": 20.0, "amplitude": 0.8})
    phase = (records["t_ns"] % (20 * 10**9)) * (2 * np.pi / 20e9)
    # The first Fourier coefficient of 1 + a·sin is a/2.
    assert np.sin(phase).mean() == pytest.approx(0.4, abs=0.02)
    assert np.cos(phase).mean() == pytest.approx(0.0, abs=0.02)


def test_on_and_off_are_load_and_silence():
    records = generated("onoff", flows=50_000, shape={"share": 0.25, "period": 8.0})
    assert (records["t_ns"] % (8 * 10**9) < 2 * 10**9).all()


def test_a_day_has_its_night_and_its_evening():
    records = generated("diurnal", flows=100_000, shape={"period": 24.0}, rate=1000.0)
    by_hour = np.bincount(records["t_ns"] // 10**9 % 24, minlength=24)
    assert by_hour.argmin() in (2, 3, 4)
    assert by_hour.argmax() in (19, 20)


def test_a_flash_crowd_comes_and_goes():
    records = generated("flash", flows=60_000, rate=100.0)
    seconds = records["t_ns"] * 1e-9

    def rate(a: float, b: float) -> float:
        return float(((seconds >= a) & (seconds < b)).sum() / (b - a))

    assert rate(0, 60) == pytest.approx(100, rel=0.1)
    assert rate(65, 66) == pytest.approx(1000, rel=0.1)
    assert rate(84, 86) == pytest.approx(100 * (1 + 9 / np.e), rel=0.1)
    assert rate(200, 250) == pytest.approx(100, rel=0.1)


def test_a_heavy_tail_is_pareto_between_its_bounds():
    work = generated("pareto", flows=200_000, shape={"alpha": 1.5, "tail_ratio": 1000.0})["work"]
    least = work.min()
    assert work.max() < 1001 * least
    # P(X > x) = ((least/x)^a - tail) / (1 - tail), tail = 1000^-a
    tail = 1000**-1.5
    for multiple in (2, 10, 50):
        expected = (multiple**-1.5 - tail) / (1 - tail)
        assert (work > multiple * least).mean() == pytest.approx(expected, rel=0.1)


def test_few_elephants_have_most_of_the_work():
    records = generated("mice", flows=200_000)
    work = np.sort(records["work"])[::-1]
    assert work[: len(work) // 20].sum() / work.sum() == pytest.approx(0.8, abs=0.03)
    assert records["bytes"].mean() == pytest.approx(50_000, rel=0.05)


def test_wiki_pages_bring_their_objects_and_few_pages_are_popular():
    records = generated("wiki", flows=100_000)
    keys, counts = np.unique(records["key"], return_counts=True)
    counts = np.sort(counts)[::-1]
    assert counts[:100].sum() > 0.2 * len(records)
    assert len(keys) > 1000
    assert index_at(records, 1.0) > 5
    assert records["bytes"].mean() == pytest.approx(11_000, rel=0.1)


def test_clients_have_equal_shares_of_the_keys():
    records = generated("poisson", flows=20_000, clients=20)
    _, counts = np.unique(records["key"], return_counts=True)
    assert len(counts) == 20
    assert counts.min() > 800
    assert len(np.unique(generated("poisson", flows=20_000)["key"])) == 20_000


def test_balancers_are_drawn_evenly():
    counts = np.bincount(generated("wiki", flows=20_000, balancers=4)["balancer"])
    assert len(counts) == 4
    assert counts.min() > 4_700


@given(
    st.sampled_from(list(KINDS)),
    st.integers(-(2**70), 2**70),
    st.floats(1e-4, 1e9),
    st.floats(1e-9, 1e9),
    st.integers(0, 300),
)
def test_any_recipe_is_a_trace_or_an_error(kind, seed, rate, mean_work, flows):
    try:
        records = generated(kind, seed=seed, rate=rate, mean_work=mean_work, flows=flows)
    except TraceError:
        return
    assert len(records) == flows
    assert (np.diff(records["t_ns"]) >= 0).all()


@pytest.mark.parametrize(
    "recipe",
    [
        {"kind": "nosuch"},
        {"kind": "poisson", "rate": 0.0},
        {"kind": "poisson", "rate": float("nan")},
        {"kind": "poisson", "flows": -1},
        {"kind": "poisson", "balancers": 0},
        {"kind": "poisson", "shape": {"factor": 2.0}},
        {"kind": "onoff", "shape": {"share": 1.0}},
        {"kind": "mmpp2", "shape": {"factor": 0.5}},
        {"kind": "pareto", "shape": {"tail_ratio": 1.0}},
        {"kind": "wiki", "shape": {"pages": 1e9}},
        {"kind": "sine", "shape": {"period": float("inf")}},
    ],
)
def test_recipes_that_make_no_sense_are_refused(recipe):
    with pytest.raises(TraceError):
        Recipe(**recipe)
