"""The capacity that `vickrey replay --load` is a share of: told, asked of the servers, or measured."""

import re
from collections.abc import Iterator

import numpy as np
import pytest

from testbed.farm import Farm
from testbed.load.generator import parse_url
from testbed.replay import capacity
from testbed.traces.record import TraceError
from tests.testbed.test_replay import replay


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with Farm.of_speeds([2.0], workers=2) as running:
        yield running


def test_a_load_needs_a_capacity_and_gets_it_from_the_servers(farm: Farm, capsys: pytest.CaptureFixture[str]):
    target = f"http://{farm.addresses[0]}/"
    common = ("poisson:mean_work=0.004,flows=200", "--target", target, "--load", "0.5", "--late-p99", "10s")
    status, found = replay(*common)
    assert status == 2
    assert "--capacity" in found["error"]
    status, found = replay(*common, "--servers", farm.addresses[0], "--late-max", "10s")
    assert status == 0
    assert found["load"]["capacity_per_s"] == 4.0
    assert found["load"]["load"] == pytest.approx(0.5)
    # 200 flows of 4 ms at half of 4 s a second: 250 a second for 0.4 s.
    assert found["seconds"]["scheduled"] == pytest.approx(0.4, rel=0.35)


def test_a_capacity_can_be_measured(farm: Farm):
    status, found = replay(
        "poisson:mean_work=0.02,flows=300", "--target", f"http://{farm.addresses[0]}/", "--limit", "50",
        "--load", "0.5", "--capacity", "measure", "--measure-for", "1200ms", "--late-p99", "10s", "--late-max", "10s",
    )  # fmt: skip
    assert status == 0
    # Two workers of speed 2; a busy machine makes them slower, and what is under way at the edges counts or not.
    assert 2.4 < found["load"]["capacity_per_s"] < 4.4


def test_a_capacity_is_not_taken_from_a_handful_of_answers(monkeypatch: pytest.MonkeyPatch):
    """Sixty-four requests of 100 ms before one worker: a second has ten answers, and says little of those that come."""
    monkeypatch.setattr(capacity, "PATIENCE", 2.0)
    with Farm.of_speeds([1.0], workers=1) as farm:
        target = parse_url(f"http://{farm.addresses[0]}/")
        work = np.full(4, 0.1)
        with pytest.raises(TraceError, match=r"[0-9]+ answers came in ([0-9.]+) s; it takes 128, two for") as refused:
            capacity.measured(target, lambda _: target.get("/?d=100"), work, seconds=1.5)
        passed_s = float(re.findall(r"came in ([0-9.]+) s", str(refused.value))[0])
        assert 3.0 <= passed_s < 20, "the time that really passed"
        assert farm.await_idle()
        found = capacity.measured(target, lambda _: target.get("/?d=100"), work, seconds=1.5, connections=8)
        assert found == pytest.approx(1.0, rel=0.15)
