"""The processes die, hang, and are raced (rows 12, 13, 18, 19, 20, 24 of the fault matrix)."""

import os
import signal
import subprocess
import sys
import time

import pytest

from shm_layout.mapping import segment_name
from shm_layout.segment import Limits, Segment
from testbed.processes import free_port
from tests.faults.running import ROOT, Load, is_alive, wait_until


def test_a_killed_controller_costs_no_request_and_comes_back(balancer):
    """Row 18: kill -9 under load, three times."""
    with balancer() as running, Load(running.port) as load:
        for restarts in (1, 2, 3):
            pid = running.pid("controller")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: running.process("controller")["restarts"] == restarts)  # noqa: B023
            wait_until(lambda: running.process("controller")["up"], 20)
            load.run_for(200)
        assert running.service["policy"]["name"] == "adaptive"
        assert running.process("dataplane")["restarts"] == 0
    load.assert_nothing_lost()


def test_a_new_controller_is_told_the_policies_in_force(balancer):
    """Row 18: the policy that was set by hand, not the file's."""
    with balancer() as running, Load(running.port) as load:
        running.change("POST", "services/web/policy", {"name": "sed"})
        os.kill(running.pid("controller"), signal.SIGKILL)
        wait_until(lambda: running.process("controller")["restarts"] == 1 and running.process("controller")["up"], 20)
        wait_until(lambda: running.service["directive"]["policy"] == "sed")
        assert running.change("POST", "services/web/policy/rollback")["policy"]["name"] == "adaptive"
    load.assert_nothing_lost()


def test_a_hung_controller_gives_way_to_the_fallback_and_is_replaced(balancer):
    """Row 19: SIGSTOP; judged by its heartbeat, not by the presence of the process."""
    with balancer(stale_after="500ms") as running, Load(running.port) as load:
        pid = running.pid("controller")
        os.kill(pid, signal.SIGSTOP)
        seen = set()

        def both_told():
            if running.service["fallback_active"]:
                seen.add("fallback")
            if running.metrics()["vickrey_controller_up"] == 0:
                seen.add("down")
            return len(seen) == 2

        wait_until(both_told)  # neither lasts: it is replaced
        wait_until(lambda: running.process("controller")["restarts"] == 1 and running.process("controller")["up"], 20)
        wait_until(lambda: not running.service["fallback_active"])
        assert not is_alive(pid)
    load.assert_nothing_lost()


def test_a_killed_data_plane_is_back_within_a_second_with_true_in_flight_counts(balancer):
    """Row 12: its open connections are lost, no new one is refused, and nothing stays in flight."""
    with balancer(workers=2) as running, Load(running.port) as load:
        load.run_for(200)
        dataplane = running.pid("dataplane")
        killed = time.monotonic()
        os.kill(dataplane, signal.SIGKILL)
        wait_until(lambda: running.process("dataplane")["restarts"] == 1 and load.last_good > killed + 0.05, 5, 0.002)
        assert time.monotonic() - killed < 1.0
        load.run_for(200)
        assert len(load.errors) <= 8  # one for each connection that was open
        assert not any("Refused" in error for error in load.errors)
    assert set(load.statuses) == {200}


def test_in_flight_returns_to_zero_after_the_data_plane_was_killed(balancer):
    """Row 12: counts are repaired, not inherited."""
    with balancer() as running:
        with Load(running.port, path="/?d=50"):
            wait_until(lambda: running.in_flight() > 0)
            os.kill(running.pid("dataplane"), signal.SIGKILL)
            wait_until(lambda: running.process("dataplane")["restarts"] == 1)
        wait_until(lambda: running.in_flight() == 0)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_supervisor_leaves_no_process_and_no_port_behind(balancer, stopped):
    """Row 13; also when the data plane hangs at that moment and is continued later."""
    running = balancer()
    running.start()
    children = running.children()
    dataplane = running.pid("dataplane")
    if stopped:
        os.kill(dataplane, signal.SIGSTOP)
    os.kill(running.supervisor_pid, signal.SIGKILL)
    running.wait_for_exit()
    if stopped:
        os.kill(dataplane, signal.SIGCONT)
    assert len(children) == 2
    wait_until(lambda: not any(is_alive(pid) for pid in children))
    assert running.segments() != []  # nobody was left to remove it …
    with running:  # … so the next one of the name does, and takes the port
        assert running.in_flight() == 0


def test_a_stale_segment_is_replaced_and_a_live_ones_owner_is_respected(balancer):
    """Row 20: garbage and a dead owner's segment are made anew; a live owner's name is refused, both pids named."""
    running = balancer()
    name = segment_name(running.instance, "web")
    path = f"/dev/shm{name}"
    with open(path, "wb") as garbage:
        garbage.write(os.urandom(8192))
    with running:
        assert running.in_flight() == 0
    with Segment.create(name, Limits(), "web") as ours:
        command = [sys.executable, "-m", "controlplane.cli", "run", str(running.file)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert f"process {os.getpid()} owns it and is alive" in done.stderr
        ours.unlink()


def test_a_second_controller_is_refused_with_a_message(balancer):
    """Row 24: the one that runs is not disturbed."""
    with balancer() as running, Load(running.port) as load:
        first = running.pid("controller")
        start = (
            f'{{"id": 0, "cmd": "start", "supervisor_pid": {os.getpid()}, "services":'
            f' [{{"service": "web", "segment": "{segment_name(running.instance, "web")}", "policy": "sed"}}]}}\n'
        )
        command = [sys.executable, "-m", "controlplane.controller"]
        second = subprocess.run(command, cwd=ROOT, input=start, capture_output=True, text=True, timeout=30, check=False)
        assert '"ok": false' in second.stdout
        assert f"process {first} is its controller" in second.stdout
        load.run_for(100)
        assert running.pid("controller") == first
        assert running.service["directive"]["policy"] == "adaptive"
    load.assert_nothing_lost()


def test_a_port_that_is_taken_is_a_clear_error(balancer, tmp_path):
    with balancer() as running:
        other = tmp_path / "other.yaml"
        other.write_text(
            running.file.read_text()
            .replace(running.instance, f"{running.instance}-b")
            .replace(str(running.admin_port), str(free_port()))
        )
        command = [sys.executable, "-m", "controlplane.cli", "run", str(other)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert f"cannot listen on 127.0.0.1:{running.port}: another process listens there already" in done.stderr
