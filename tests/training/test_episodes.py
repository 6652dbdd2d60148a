"""What episodes measure, beside queueing theory."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.learned.schema import ActionSchema
from controlplane.training.episodes import Episodes, Setup, Tally
from controlplane.training.tasks import tasks_of
from tests.training.small import write_scenario

REPLICAS = 8
ONE_SERVER = """\
servers:
  - {name: one, speed: 1}
demand: {kind: exponential, mean: 1ms}
load: 0.5
policies: [lsq]
"""


def outcomes(path, **settings):
    """Return mean and p99 completion times (replicas,) of episodes left to the base policy."""
    setup = Setup(ActionSchema(row_heads=("mu",), global_heads=("scale",)), base="gsed", **settings)
    (task,) = tasks_of([path], setup.interval)
    episodes = Episodes(setup, task, 1, REPLICAS, twins=False, width=2, records=True)
    tally = Tally(setup, REPLICAS)
    try:
        episodes.begin([[1, i] for i in range(REPLICAS)])
        for _ in range(setup.steps):
            tally.add(episodes.step(np.zeros((REPLICAS, 2, 1)), np.zeros((REPLICAS, 1))))
        return tally.fct, episodes.p99()
    finally:
        episodes.close()


def test_the_p99_before_one_server_is_that_of_an_exponential_distribution(tmp_path):
    # M/M/1: completion times are exponential with mean 1 / (μ − λ); their p99 is ln 100 of it.
    mean, p99 = outcomes(write_scenario(tmp_path, ONE_SERVER))
    assert np.mean(mean) == pytest.approx(2e-3, rel=0.05)
    assert np.mean(p99) == pytest.approx(np.log(100) * 2e-3, rel=0.08)


def test_the_p99_leaves_the_warm_up_out(tmp_path):
    # For the first second of four the server is a fifth as fast, and flows queue; by 1.5 s it is over.
    text = ONE_SERVER.replace("load: 0.5", "load: 0.3").replace("exponential", "deterministic")
    text += "duration: 4s\nevents:\n"
    for at, speed in (("1ms", 0.2), ("1s", 1)):
        text += f"  - {{at: {at}, kind: speed, server: one, speed: {speed}}}\n"
    path = write_scenario(tmp_path, text)
    (_, after), (_, whole) = (outcomes(path, steps=20, warmup=share) for share in (0.5, 0.0))
    assert (after < 6e-3).all()
    assert (whole > 100e-3).all()


@pytest.mark.parametrize(
    "arrivals",
    ["kind: on-off, rates: [10, 0.1], durations: [60s, 600s]", "kind: profile, rates: [8, 1, 1, 1], step: 60s"],
)
def test_the_p99_is_of_all_flows_also_where_an_episode_is_but_the_busiest_phase(arrivals, tmp_path):
    text = ONE_SERVER.replace("load: 0.5", "load: 0.1") + f"arrivals: {{{arrivals}}}\n"
    _, p99 = outcomes(write_scenario(tmp_path, text), steps=200)
    assert np.isfinite(p99).all()
