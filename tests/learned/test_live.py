"""Policy files on a whole balancer under load: whatever the file, no request is lost (rows 26, 27, 28 and 30)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.running import Load, Running, wait_until
from tests.learned.files import oscillating, random, save
from tests.learned.test_policy_file import PARAMETERS, forged


def vickrey(running: Running, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command beside the balancer."""
    command = [sys.executable, "-m", "controlplane.cli", *arguments]
    if arguments[:2] == ("policy", "set"):
        command += ["--admin", f"127.0.0.1:{running.admin_port}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=running.folder)


def policy_of(running: Running) -> str:
    """Return the name of the policy in force; that of none while there is no controller."""
    found = running.get("services/web/policy").get("policy")
    return found if isinstance(found, str) else ""


def test_a_policy_file_takes_over_and_gives_back_under_load(balancer: Any, tmp_path: Path) -> None:
    save(tmp_path / "mine.safetensors", random(scale=1.0))
    with balancer() as running, Load(running.port) as load:
        load.run_for(50)
        # Its name is relative here, and the controller may run anywhere.
        done = vickrey(running, "policy", "set", "mine.safetensors")
        assert done.returncode == 0, done.stderr
        wait_until(lambda: policy_of(running) == "learned")
        assert running.get("services/web/policy")["spec"]["file"] == str(tmp_path / "mine.safetensors")
        load.run_for(300)
        shown = running.get("services/web/policy")
        assert all("delta_mu" in server for server in shown["servers"])
        assert (shown["failed"], shown["demotions"]) == (0, 0)
        assert shown["late"] < 3, "the machine may be late by a period, the network never is"
        assert (shown["novelty"], shown["blend"]) == (0.0, 1.0)
        assert not {"novel_input", "alone"} & set(shown), "nothing is strange to it"
        running.change("POST", "services/web/policy/rollback")
        wait_until(lambda: policy_of(running) == "adaptive")
        load.run_for(50)
    load.assert_nothing_lost()


@pytest.mark.parametrize("network", ["oscillating", "random", "nearly overflowing"])
def test_an_adversarial_policy_loses_no_request(balancer: Any, tmp_path: Path, network: str) -> None:
    parameters = {
        "oscillating": oscillating(),
        "random": random(seed=9, scale=30.0),
        "nearly overflowing": {name: values * 1e4 for name, values in random(scale=0.2).items()},
    }[network]
    file = save(tmp_path / "p.safetensors", parameters)
    with balancer(interval="50ms") as running, Load(running.port) as load:
        load.run_for(50)
        running.change("POST", "services/web/policy", {"name": "learned", "file": str(file), "guard": False})
        load.run_for(600)
        published = running.get("services/web/policy")["published"]
        wait_until(lambda: running.get("services/web/policy")["published"] > published + 5)
        assert running.get("services/web/policy")["demotions"] == 0
        # A healthy server is never starved, whoever decides.
        assert all(server["flows_total"] > 0 for server in running.service["servers"])
    load.assert_nothing_lost()


def damaged(good: bytes, how: str) -> bytes:
    match how:
        case "truncated":
            return good[: len(good) // 2]
        case "a bit":
            return good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
        case "not a number":  # and signed
            return forged(lambda tree: None, {**PARAMETERS, "enter.bias": np.full(2, np.nan, dtype=np.float32)})
        case "foreign":
            return b"\x80\x04K\x01."
        case _:
            return b""


def test_a_file_that_is_not_right_is_refused_and_traffic_goes_on(balancer: Any, tmp_path: Path) -> None:
    good = save(tmp_path / "good.safetensors")
    bad = tmp_path / "bad.safetensors"
    with balancer(policy={"name": "learned", "file": "good.safetensors"}) as running, Load(running.port) as load:
        load.run_for(50)
        before = running.get("services/web/policy")
        assert before["spec"]["file"] == str(good), "a file that a configuration names is beside it"
        for how in ("truncated", "a bit", "foreign", "empty", "not a number"):
            bad.write_bytes(damaged(good.read_bytes(), how))
            status, answer = running.request("POST", "/v1/services/web/policy", {"name": "learned", "file": str(bad)})
            assert status >= 400, how
            assert str(bad) in answer["error"]
            load.run_for(20)
        # The command refuses it before the controller is asked, and a reload by its line and key.
        done = vickrey(running, "policy", "set", str(bad))
        assert done.returncode == 1
        assert done.stderr.startswith(f"vickrey policy: {bad}: ")
        running.write(policy={"name": "learned", "file": "bad.safetensors"})
        status, answer = running.request("POST", "/v1/reload", {})
        assert status >= 400
        assert "service.web.policy.file" in json.dumps(answer)
        load.run_for(50)
        after = running.get("services/web/policy")
        assert (after["spec"], after["demotions"]) == (before["spec"], 0)
        assert running.process("controller")["restarts"] == 0
    load.assert_nothing_lost()


def test_a_file_that_is_damaged_while_its_policy_runs_changes_nothing_until_a_restart(
    balancer: Any, tmp_path: Path
) -> None:
    """Row 27, at run time: what is in force was read once. A controller that starts anew goes on without it."""
    file = save(tmp_path / "mine.safetensors", random(scale=1.0))
    with balancer(policy={"name": "learned", "file": str(file)}) as running, Load(running.port) as load:
        load.run_for(50)
        file.write_bytes(b"gone")
        load.run_for(50)
        assert policy_of(running) == "learned"
        assert running.get("services/web/policy")["failed"] == 0
        os.kill(running.pid("controller"), signal.SIGKILL)
        wait_until(lambda: policy_of(running) == "adaptive")
        load.run_for(50)
        assert str(file) in running.get("services/web/policy")["demoted"]
        assert running.process("controller")["restarts"] == 1
    load.assert_nothing_lost()
