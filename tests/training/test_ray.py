"""Training on a Ray cluster: one of its own, on this machine."""

from __future__ import annotations

import json

import numpy as np
import pytest

from controlplane.cli import main
from controlplane.learned.policy_file import read
from tests.training.small import TORCH, changes_for, options, write_scenario

pytest.importorskip("torch", reason=TORCH)
pytest.importorskip("ray", reason="--ray needs Ray: pip install 'vickrey[ray]'")

# Ray's own files and sockets are closed when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_local_cluster_trains_the_same_policy_as_this_process(tmp_path):
    scenario = write_scenario(tmp_path)
    common = ["train", "es", "--scenario", scenario, "--steps", "96", "--quiet", *options(changes_for("es"))]
    assert main([*common, "--out", str(tmp_path / "here")]) == 0
    assert main([*common, "--out", str(tmp_path / "ray"), "--ray", "--workers", "1"]) == 0
    here, there = (read(tmp_path / name / "last.safetensors")[0] for name in ("here", "ray"))
    assert all(np.array_equal(here[name], there[name]) for name in here)


def test_a_sweep_runs_each_training_as_a_task_of_a_cluster(tmp_path, capsys):
    scenario = write_scenario(tmp_path)
    common = ["train", "es", "--scenario", scenario, "--steps", "48", "--quiet", *options(changes_for("es"))]
    sweep = [*common, "--out", str(tmp_path / "sweep"), "--sweep", "sigma=0.1,0.3", "--json"]
    assert main([*sweep, "--ray", "--workers", "2"]) == 0
    found = json.loads(capsys.readouterr().out)["trainings"]
    assert {tuple(one["set"]) for one in found} == {("sigma=0.1",), ("sigma=0.3",)}
    for one in found:
        assert one["steps"] == 48
        read(f"{one['out']}/policy.safetensors")
