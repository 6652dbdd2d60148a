"""Reservoirs favour the recent: ages are geometric; durations of open flows are sampled in turn."""

import numpy as np
import pytest

from dataplane._dataplane import lib
from tests.core.farm import Farm


def samples_of(farm, metric):
    """Return times and values of slot 0's reservoir, empty slots left out."""
    samples = farm.segment.read_reservoirs(metric).samples[0, 0]
    kept = samples[samples["time_ns"] > 0]
    return kept["time_ns"].astype(np.int64), kept["value_ns"].astype(np.int64)


def test_ages_are_geometric_with_mean_as_many_as_there_are_slots():
    # Aggarwal 2006, every sample taken in: one survives a step with 1 - 1/slots, so the mean age is slots - 1.
    slots, ages = 64, []
    with Farm(1, reservoir_slots=slots) as farm:
        for k in range(1, 40 * slots):
            farm.balancer.close(farm.balancer.open(0, farm.now + k), farm.now + k)
            if k > 8 * slots and k % (2 * slots) == 0:
                times, _ = samples_of(farm, lib.METRIC_FCT)
                assert len(times) == slots
                ages.append(farm.now + k - times)
    ages = np.concatenate(ages)
    assert ages.mean() == pytest.approx(slots - 1, rel=0.15)
    assert np.mean(ages < slots * np.log(2)) == pytest.approx(0.5, abs=0.06)


def test_a_reservoir_fills_before_it_replaces():
    with Farm(1, reservoir_slots=16) as farm:
        for k in range(16):
            farm.balancer.close(farm.balancer.open(0, farm.now), farm.now + k + 1)
        _, values = samples_of(farm, lib.METRIC_FCT)
        assert values.tolist() == list(range(1, 17))


def test_durations_of_open_flows_are_sampled_in_turn():
    with Farm(2, reservoir_slots=16, sample_durations=2) as farm:
        flows = [farm.balancer.open(0, farm.now + k) for k in range(5)]
        tick = farm.now + 100
        farm.balancer.sample(tick)
        farm.balancer.sample(tick)
        assert samples_of(farm, lib.METRIC_DURATION)[1].tolist() == [100, 99, 98, 97]
        farm.balancer.close(flows[4], tick, lib.OUTCOME_CLIENT_ABORT)
        farm.balancer.sample(tick)
        assert samples_of(farm, lib.METRIC_DURATION)[1].tolist()[4:] == [100, 99]
        assert samples_of(farm, lib.METRIC_FCT)[1].size == 0


def test_few_open_flows_are_sampled_once_a_tick():
    with Farm(1, sample_durations=4) as farm:
        flow = farm.balancer.open(0, farm.now)
        farm.balancer.sample(farm.now + 7)
        assert samples_of(farm, lib.METRIC_DURATION)[1].tolist() == [7]
        assert flow.server == 0


def test_the_histogram_puts_each_duration_between_its_buckets_bounds():
    with Farm(1) as farm:
        for exponent in range(44):
            for fct in (2**exponent, 2**exponent + 1, 3 * 2**exponent // 2):
                farm.balancer.close(farm.balancer.open(0, farm.now), farm.now + fct)
                bucket = lib.histogram_bucket(fct)
                assert bucket == 0 or lib.histogram_bucket_low(bucket) <= fct
                assert bucket == 255 or fct < lib.histogram_bucket_low(bucket + 1)
        assert farm.balancer.stats(0)["fct_histogram"].sum() == 3 * 44
