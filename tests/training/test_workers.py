"""Who runs jobs, and how many at a time: processes, and what a Ray cluster is asked for (none is started here)."""

from __future__ import annotations

import multiprocessing
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from controlplane.cli import main
from controlplane.simulation import pool
from controlplane.training.workers import Here, Open, Processes, RayCluster
from tests.training.small import TORCH, changes_for, options, scenario  # noqa: F401

CORES = 7


class Cluster:
    """Stands in for the module `ray`, and runs jobs at once; an existing cluster has 40 processors."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def init(self, **asked: Any) -> None:
        self.asked = asked

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.asked.get("num_cpus", 40))}

    def remote(self, function: Any) -> SimpleNamespace:
        return SimpleNamespace(remote=function)

    def get(self, results: list[Any]) -> list[Any]:
        return results

    def shutdown(self) -> None:
        pass


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setitem(sys.modules, "ray", cluster)  # type: ignore[arg-type]
    monkeypatch.setattr(pool, "cores", lambda: CORES)
    return cluster


@pytest.mark.parametrize(("count", "processors"), [(None, CORES), (0, CORES), (3, 3)])
def test_a_cluster_of_ones_own_has_all_cores_unless_fewer_are_asked_for(ray, count, processors):
    with Open(count, "local") as workers:
        assert isinstance(workers, RayCluster)
        assert workers.count == processors
    assert ray.asked["num_cpus"] == processors
    assert ray.asked["address"] == "local"


def test_a_cluster_that_is_there_is_taken_as_it_is(ray):
    with Open(None, "auto") as workers:
        assert workers.count == 40
    assert ray.asked["address"] == "auto"
    assert "num_cpus" not in ray.asked


def test_without_ray_one_process_is_the_default(ray):
    with Open(None) as one, Open(0) as every, Open(2) as two:
        assert isinstance(one, Here)
        assert isinstance(every, Processes)
        assert (one.count, every.count, two.count) == (1, CORES, 2)
    assert ray.asked == {}


def test_a_sweep_over_ray_trains_as_many_at_a_time_as_there_are_cores(ray, scenario, tmp_path, capsys):  # noqa: F811
    pytest.importorskip("torch", reason=TORCH)
    common = ["train", "es", "--scenario", scenario, "--out", str(tmp_path / "run"), *options(changes_for("es"))]
    assert main([*common, "--steps", "24", "--sweep", "sigma=0.1,0.2", "--ray"]) == 0
    assert f"2 trainings, {CORES} at a time" in capsys.readouterr().err


class Asleep:
    """A job that takes long."""

    def run(self) -> None:
        time.sleep(60.0)


@pytest.mark.live
@pytest.mark.usefixtures("interrupted_while_processes_start")
def test_an_interrupt_while_the_processes_are_started_ends_them_and_their_jobs():
    before, began = set(multiprocessing.active_children()), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Processes(2).map([Asleep(), Asleep()])
    assert time.monotonic() - began < 30
    assert set(multiprocessing.active_children()) <= before
