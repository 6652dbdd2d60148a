"""A replay at one server measures the queue that theory describes: M/M/k."""

import numpy as np
import pytest

from testbed.farm import Farm
from testbed.load.generator import Target, parse_url
from testbed.load.priority import priority
from testbed.load.report import summarize
from testbed.reference import central_queue, mmk_mean_s
from testbed.replay import source
from testbed.replay.run import Interrupts, run

K, RHO, MEAN_S = 3, 0.6, 0.04


def plan(target: Target, duration: float, seed: int) -> source.Plan:
    wanted = source.Wanted(f"poisson:rate={RHO * K / MEAN_S},mean_work={MEAN_S}", duration=duration, seed=seed)
    return source.load(wanted).plan(target)


def test_erlangs_formula_has_the_textbook_values():
    # M/M/1: 1/(mu - lambda). M/M/2: 1/mu / (1 - rho^2). M/M/3 at rho = 2/3, a = 2: the chance to wait is 4/9.
    assert mmk_mean_s(1, 0.5, 1.0) == pytest.approx(2.0)
    assert mmk_mean_s(2, 0.5, 1.0) == pytest.approx(4 / 3)
    assert mmk_mean_s(3, 2 / 3, 1.0) == pytest.approx(1 + 4 / 9)


def test_the_made_up_trace_in_a_simulated_queue_agrees_with_the_formula():
    long = plan(Target("127.0.0.1", 1), 6000.0, 1)
    fct_s = central_queue(long.schedule.arrival_s, long.work, [1.0], K)
    assert len(fct_s) > 250_000
    assert fct_s.mean() == pytest.approx(mmk_mean_s(K, RHO, MEAN_S), rel=0.02)


def test_a_replay_at_one_server_agrees_with_the_queue():
    with Farm.of_speeds([1.0], workers=K) as farm:
        made = plan(parse_url(f"http://{farm.addresses[0]}/"), 5.0, 2)
        with Interrupts() as interrupts, priority("realtime"):
            result = run(made, interrupts).result
    summary = summarize(result)
    assert summary.answered == len(made.schedule)
    records = result.records
    # The very same queue: when requests really left, and how long services really took (a busy machine is late).
    same = central_queue(records["sent_s"], records["service_ms"] / 1e3, [1.0], K)
    took = records["done_s"] - records["sent_s"]
    assert took.mean() == pytest.approx(same.mean(), rel=0.05)
    # The queue as it was meant: what a busy machine adds to each service makes it fuller, nothing makes it emptier.
    meant = central_queue(made.schedule.arrival_s, made.work, [1.0], K).mean()
    assert 0.98 < summary.mean / 1e3 / meant < 1.25
    # And theory, as exact as a run of this length can be: among all but one in a thousand of such runs.
    runs = [
        central_queue(other.schedule.arrival_s, other.work, [1.0], K).mean()
        for other in (plan(made.target, 5.0, 100 + i) for i in range(300))
    ]
    low, high = np.percentile(runs, (0.1, 99.9))
    assert low < mmk_mean_s(K, RHO, MEAN_S) < high
    assert 0.98 * low < summary.mean / 1e3 < 1.25 * high
