"""A comparison that waits until the machine is fit to be measured on."""

import time
from typing import Any

import pytest

from testbed.compare import machine, runner
from testbed.compare.runner import Runner
from testbed.compare.scenario import Scenario
from testbed.interrupts import Deferred

SMALL = {
    "title": "one server",
    "shows": "",
    "servers": ({},),
    "traffic": ({"demand": {"shape": "fixed", "mean": "5ms"}},),
    "load": 0.3,
    "seconds": "1s",
    "warmup": "200ms",
    "rounds": 1,
    "variants": ("vickrey adaptive",),
}


@pytest.fixture
def late_ms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How late a sleeper wakes, look by look."""
    looks: list[float] = []
    monkeypatch.setattr(machine, "waking_late", lambda _: looks.pop(0) / 1e3)
    monkeypatch.setattr(machine, "_REST_S", 0.0)
    monkeypatch.setattr(machine.Machine, "stop", lambda _: (0.0, 0.0))
    return looks


def test_it_looks_again_until_a_sleeper_wakes_in_time(late_ms: list[float]):
    late_ms += [5, 0.31, 0.29, 5]
    told: list[str] = []
    machine.await_quiet(Deferred(), told.append, 60)
    assert late_ms == [5]
    assert [text.split(" late")[0] for text in told] == [f"not quiet: a sleeper wakes {late} ms" for late in (5.0, 0.3)]


def test_it_looks_again_until_others_leave_the_cpu(late_ms: list[float], monkeypatch: pytest.MonkeyPatch):
    late_ms += [0, 0]
    others = [0.8, 0.02]
    monkeypatch.setattr(machine.Machine, "stop", lambda _: (1.0, others.pop(0)))
    told: list[str] = []
    machine.await_quiet(Deferred(), told.append, 60)
    assert told == ["not quiet: others use 80% of the CPU (limit 10%)"]


def test_it_gives_up_on_a_machine_that_is_never_quiet(late_ms: list[float]):
    late_ms += [5, 5]
    with pytest.raises(TimeoutError, match="not quiet for 0 s"):
        machine.await_quiet(Deferred(), lambda _: None, 0)


def test_a_signal_ends_the_wait(late_ms: list[float]):
    late_ms += [5, 0]
    signals = Deferred()
    signals.number = 15
    with pytest.raises(KeyboardInterrupt):
        machine.await_quiet(signals, lambda _: None, 60)
    assert late_ms == [0]


def test_lateness_is_what_a_sleep_took_too_long(monkeypatch: pytest.MonkeyPatch):
    sleep = time.sleep
    assert machine.waking_late(Deferred(), 0.2) >= 0
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds + 0.02))
    assert machine.waking_late(Deferred(), 0.2) >= 0.02


def test_every_run_is_waited_for_that_of_the_direct_path_too(monkeypatch: pytest.MonkeyPatch):
    did: list[str] = []
    send = runner.send

    def noted(*arguments: Any, **options: Any) -> Any:
        did.append("run")
        return send(*arguments, **options)

    monkeypatch.setattr(runner, "send", noted)
    with Deferred() as signals:
        found = Runner(Scenario.model_validate(SMALL), say=print, ready=lambda _: did.append("wait")).run(signals)
    assert len(found.runs) == 1
    assert found.references
    assert len(did) >= 4
    assert did == ["wait", "run"] * (len(did) // 2)
