"""The controller as a process: commands in, answers out, one controller a segment, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm_layout.segment import Limits, Segment, ServerData, SettingsData

SERVERS = 3


@pytest.fixture
def segment() -> Iterator[Segment]:
    name = f"/vickrey.test{os.getpid()}.controller"
    with Segment.create(name, Limits(max_servers=8), "web") as made:
        servers = [ServerData(id=i + 1, name=f"s{i}", weight=i + 1) for i in range(SERVERS)]
        made.publish_settings(SettingsData(servers=servers))
        yield made
        made.unlink()


class Process:
    """A controller with the test as its supervisor."""

    def __init__(self, *arguments: str, path: Path | None = None) -> None:
        command = [sys.executable, "-m", "controlplane.controller", *arguments]
        env = os.environ | ({"PYTHONPATH": str(path)} if path else {})
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)
        self.events: list[dict[str, Any]] = []

    def tell(self, line: str) -> dict[str, Any]:
        self.ask(line)
        return self.answer()

    def ask(self, line: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        while "event" in (answer := json.loads(self.popen.stdout.readline())):
            self.events.append(answer)
        return dict(answer)

    def command(self, **command: Any) -> dict[str, Any]:
        return self.tell(json.dumps({"id": 7, **command}))

    def start(self, segment: Segment, policy: Any = "lsq", interval: float = 0.02, **more: Any) -> dict[str, Any]:
        service = {"service": "web", "segment": segment.name, "interval": interval, "balancers": 1, **more}
        service |= {"objective": "mean", "policy": policy if isinstance(policy, dict) else {"name": policy}}
        return self.command(cmd="start", supervisor_pid=os.getpid(), services=[service])

    def end(self) -> int:
        self.popen.communicate(timeout=20)  # closes its input
        return self.popen.returncode


@pytest.fixture
def controller() -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def make(*arguments: str, path: Path | None = None) -> Process:
        made.append(Process(*arguments, path=path))
        return made[-1]

    yield make
    for process in made:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.wait()
        for pipe in (process.popen.stdin, process.popen.stdout, process.popen.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_first_directive_is_in_force_before_start_is_answered(segment, controller):
    process = controller()
    assert process.start(segment)["ok"]
    view = segment.read_directive()
    assert (view.policy, view.rule, list(view.ids)) == ("lsq", "bids", [1, 2, 3])
    assert view.head["enforcing_percent"] == 100
    assert process.end() == 0


def test_all_of_its_threads_give_way_to_the_data_plane(segment, controller):
    process = controller()
    assert process.start(segment)["ok"]
    threads = [int(folder.name) for folder in Path(f"/proc/{process.popen.pid}/task").iterdir()]
    assert len(threads) > 1  # at least the main one and the loop's
    nice = max(os.getpriority(os.PRIO_PROCESS, 0), 10)
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {nice}
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}


def test_it_beats_although_nothing_changes(segment, controller):
    controller().start(segment)
    first = segment.read_controller()
    until(lambda: segment.read_controller()["cycles"] >= first["cycles"] + 5)
    assert segment.read_controller()["heartbeat_ns"] > first["heartbeat_ns"]
    assert segment.directives_published == 1  # the same decision is not published again


SLOW = """
import time
from pathlib import Path

from controlplane.policies.lsq import LeastConnections

gate, deadline = Path(__file__).with_name("gate"), time.monotonic() + 30
while not gate.exists() and time.monotonic() < deadline:
    time.sleep(0.01)


class Slow(LeastConnections):
    name = "slow"
"""


def slow_policy(folder: Path, end: str = "") -> Path:
    """A third party's policy whose module takes long to load, as torch does: until open_gate(); then it does `end`."""
    (folder / "slow_to_load.py").write_text(SLOW + end)
    about = folder / "slow_to_load-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-to-load\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[vickrey.policies]\nslow = slow_to_load:Slow\n")
    return folder


def open_gate(folder: Path) -> None:
    (folder / "gate").touch()


def await_cycles(segment: Segment) -> None:
    """The loop goes on."""
    first = segment.read_controller()["cycles"]
    until(lambda: segment.read_controller()["cycles"] >= first + 10)


def test_a_policy_that_takes_long_to_load_stops_no_loop(segment, controller, tmp_path):
    process = controller(path=slow_policy(tmp_path))
    process.start(segment)
    process.ask(json.dumps({"id": 1, "cmd": "policy", "service": "web", "policy": {"name": "slow"}}))
    assert process.command(cmd="show")["ok"], "commands are taken meanwhile"
    await_cycles(segment)
    assert segment.read_directive().policy == "lsq", "it is not there yet"
    open_gate(tmp_path)
    answer = process.answer()
    assert (answer["id"], answer["ok"]) == (1, True)
    assert segment.read_directive().policy == "slow"


def test_policies_are_set_in_the_order_they_were_asked_for(segment, controller, tmp_path):
    process = controller(path=slow_policy(tmp_path))
    process.start(segment)
    for number, name in enumerate(("slow", "sed")):
        process.ask(json.dumps({"id": number, "cmd": "policy", "service": "web", "policy": {"name": name}}))
    await_cycles(segment)  # time enough for who does not wait for its turn
    open_gate(tmp_path)
    answers = {answer["id"]: answer for answer in (process.answer(), process.answer())}
    assert answers[1]["ok"]
    assert answers[0]["ok"] or answers[0]["error"] == "another policy was set meanwhile"
    assert segment.read_directive().policy == "sed"


def test_a_rollback_does_not_wait_for_a_policy_that_is_being_made(segment, controller, tmp_path):
    process = controller(path=slow_policy(tmp_path))
    process.start(segment)
    assert process.command(cmd="policy", service="web", policy="sed")["ok"]
    process.ask(json.dumps({"id": 1, "cmd": "policy", "service": "web", "policy": {"name": "slow"}}))
    answer = process.command(cmd="rollback", service="web")
    assert (answer["id"], answer["ok"]) == (7, True), "before the one that was asked first"
    open_gate(tmp_path)
    answer = process.answer()
    assert (answer["id"], answer["ok"], answer["error"]) == (1, False, "it was rolled back meanwhile")
    assert segment.read_directive().policy == "sed", "what was in force when it was asked for is the policy before"
    assert process.command(cmd="rollback", service="web")["ok"]
    assert segment.read_directive().policy == "lsq"


def test_two_rollbacks_while_a_policy_is_being_made_go_back_one_policy(segment, controller, tmp_path):
    process = controller(path=slow_policy(tmp_path))
    process.start(segment)
    assert process.command(cmd="policy", service="web", policy="sed")["ok"]
    process.ask(json.dumps({"id": 1, "cmd": "policy", "service": "web", "policy": {"name": "slow"}}))
    for policy in ("sed", "lsq"):
        assert process.command(cmd="rollback", service="web")["id"] == 7
        assert segment.read_directive().policy == policy
    open_gate(tmp_path)
    assert process.answer()["error"] == "it was rolled back meanwhile"


def test_a_version_of_an_earlier_controller_is_made_beside_the_loop(segment, controller, tmp_path):
    process = controller(path=slow_policy(tmp_path))
    process.start(segment, history=[{"name": "slow"}])
    process.ask(json.dumps({"id": 1, "cmd": "rollback", "service": "web"}))
    await_cycles(segment)
    assert segment.read_directive().policy == "lsq"
    open_gate(tmp_path)
    answer = process.answer()
    assert (answer["id"], answer["ok"]) == (1, True)
    assert segment.read_directive().policy == "slow"


def test_an_incumbent_that_is_named_is_made_beside_the_loop(segment, controller, tmp_path):
    process = controller(path=slow_policy(tmp_path))
    process.start(segment)
    spec = {"name": "sed", "enforcing": 50, "incumbent": "slow"}
    process.ask(json.dumps({"id": 1, "cmd": "policy", "service": "web", "policy": spec}))
    await_cycles(segment)
    open_gate(tmp_path)
    assert process.answer()["ok"]
    assert process.command(cmd="show")["services"]["web"]["trial"]["incumbent"] == {"name": "slow"}


def test_a_policy_that_cannot_be_made_is_tried_once_and_refused_in_its_own_words(segment, controller, tmp_path):
    end = "with Path(__file__).with_name('tries').open('a') as tries:\n    tries.write('x')\n"
    process = controller(path=slow_policy(tmp_path, end + "raise OSError('the model is gone')\n"))
    process.start(segment)
    open_gate(tmp_path)
    answer = process.command(cmd="policy", service="web", policy={"name": "slow"})
    assert (answer["ok"], "the model is gone" in answer["error"]) == (False, True)
    assert (tmp_path / "tries").read_text() == "x"
    refused = [event for event in process.events if event.get("what") == "refused"]
    assert ["the model is gone" in event["why"] for event in refused] == [True]
    await_cycles(segment)


def test_an_error_without_words_is_told_by_its_name(segment, controller, tmp_path):
    process = controller(path=slow_policy(tmp_path, "raise MemoryError\n"))
    process.start(segment)
    open_gate(tmp_path)
    assert "MemoryError" in process.command(cmd="policy", service="web", policy={"name": "slow"})["error"]


@pytest.mark.parametrize("policy", [5, None, [], {"name": 5}, {"name": "sed", "ledger": "/tmp/" + "a" * 300}])
def test_a_policy_that_is_none_is_refused(segment, controller, policy):
    process = controller()
    process.start(segment)
    answer = process.command(cmd="policy", service="web", policy=policy)
    assert (answer["id"], answer["ok"]) == (7, False)
    assert answer["error"]
    await_cycles(segment)
    assert segment.read_directive().policy == "lsq"


def test_a_policy_is_set_shown_and_rolled_back(segment, controller):
    process = controller()
    process.start(segment)
    answer = process.command(cmd="policy", service="web", policy={"name": "gsed", "c": 0.25})
    assert answer["ok"]
    assert answer["guard"] == "off"  # there is no traffic, and the answer says so
    assert "needed" in answer["guard_why"]
    assert segment.read_directive().policy == "gsed"
    assert segment.read_directive().curves[2, :2] == pytest.approx([0.25 / 3, 1.25 / 3])
    shown = process.command(cmd="show")["services"]["web"]
    assert shown["spec"] == {"name": "gsed", "c": 0.25}
    assert shown["history"] == [{"name": "lsq"}]
    assert [server["weight"] for server in shown["servers"]] == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=1e-4)
    assert process.command(cmd="rollback", service="web")["ok"]
    assert segment.read_directive().policy == "lsq"
    refused = process.command(cmd="rollback", service="web")
    assert not refused["ok"]
    assert "no policy to go back to" in refused["error"]
    changes = [event for event in process.events if event["event"] == "policy"]
    assert [(e["policy"]["name"], e["why"]) for e in changes] == [("gsed", "set"), ("lsq", "rolled back")]
    assert [e["history"] for e in changes] == [[{"name": "lsq"}], []]
    steps = [event["what"] for event in process.events if event["event"] == "audit"]
    assert steps == ["shadowed", "enforced", "shadowed", "rolled back", "enforced"]


def test_every_rule_reaches_the_segment(segment, controller):
    process = controller()
    process.start(segment)
    for name, rule in [
        ("wcmp", "alias"),
        ("wrr", "wrr"),
        ("maglev", "maglev"),
        ("auction", "classic"),
        ("p2c", "bids"),
    ]:
        assert process.command(cmd="policy", service="web", policy={"name": name})["ok"], name
        assert segment.read_directive().rule == rule
    process.command(cmd="policy", service="web", policy={"name": "maglev"})
    slots = np.bincount(segment.read_directive().table, minlength=SERVERS)
    assert slots / slots.sum() == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.01)


def test_a_bad_policy_changes_nothing_and_says_why(segment, controller):
    process = controller()
    process.start(segment)
    for policy, why in [
        ({"name": "lsqq"}, "did you mean 'lsq'"),
        ({"name": "gsed", "x": 1}, "unknown option 'x'"),
        ({"name": "lsq", "mode": "sometimes"}, "expected enforce or shadow"),
        ({"name": "lsq", "enforcing": 101}, "expected 0 … 100"),
    ]:
        answer = process.command(cmd="policy", service="web", policy=policy)
        assert not answer["ok"]
        assert why in answer["error"]
    assert segment.read_directive().policy == "lsq"
    assert segment.directives_published == 1


def test_shadow_and_share_are_in_the_directive(segment, controller):
    process = controller()
    process.start(segment, {"name": "sed", "mode": "shadow"})
    assert segment.read_directive().head["enforcing_percent"] == 0
    process.command(cmd="policy", service="web", policy={"name": "sed", "enforcing": 10})
    assert segment.read_directive().head["enforcing_percent"] == 10


def test_it_follows_the_server_table(segment, controller):
    process = controller()
    process.start(segment, "wrr")
    servers = [ServerData(id=9, name="new", weight=5)]
    segment.publish_settings(SettingsData(version=2, servers=servers))
    until(lambda: list(segment.read_directive().ids) == [9])
    assert segment.read_directive().head["settings_version"] == 2


def test_garbage_is_answered_and_survived(segment, controller):
    process = controller()
    assert not process.tell("no json")["ok"]
    assert not process.tell("[1]")["ok"]
    assert not process.command(cmd="dance")["ok"]
    assert not process.command(cmd="policy", service="web", policy="lsq")["ok"]
    assert not process.command(cmd="start", services=[{"service": "web", "segment": "/vickrey.no.such"}])["ok"]
    assert process.start(segment)["ok"]
    assert not process.start(segment)["ok"]


def test_one_locked_service_does_not_keep_the_others_from_being_controlled(segment, controller):
    name = f"/vickrey.test{os.getpid()}.other"
    with Segment.create(name, Limits(max_servers=8), "other") as other:
        try:
            other.publish_settings(SettingsData(servers=[ServerData(id=1, name="s")]))
            first, second = controller(), controller()
            assert first.start(segment)["ok"]
            services = [
                {"service": each.name.rpartition(".")[2], "segment": each.name, "policy": {"name": "lsq"}}
                for each in (segment, other)
            ]
            answer = second.command(cmd="start", supervisor_pid=os.getpid(), services=services)
            assert answer["ok"]
            assert list(answer["locked"]) == ["controller"]
            assert list(second.command(cmd="show")["services"]) == ["other"]
            assert other.directives_published
            assert first.end() == 0
            until(lambda: len(second.command(cmd="show")["services"]) == 2)
            assert second.end() == 0
        finally:
            other.unlink()


def test_a_second_controller_is_refused_unless_it_takes_over(segment, controller):
    first, second, third = controller(), controller(), controller("--takeover")
    first.start(segment)
    answer = second.start(segment)
    assert not answer["ok"]
    assert str(first.popen.pid) in answer["error"]
    assert third.start(segment, "sed")["ok"]
    assert first.popen.wait(10) == 1  # superseded, it ends by itself
    assert segment.read_directive().policy == "sed"
    assert third.end() == 0


def test_interrupts_are_the_supervisor_s_business_and_term_ends_it(segment, controller):
    process = controller()
    process.start(segment)
    process.popen.send_signal(signal.SIGINT)
    assert process.command(cmd="show")["ok"]
    process.popen.terminate()
    assert process.popen.wait(10) == 0


def test_a_killed_controller_leaves_the_lock_and_the_directive(segment, controller):
    first = controller()
    first.start(segment, "sed")
    epoch = segment.read_controller()["epoch"]
    first.popen.kill()
    first.popen.wait()
    assert segment.read_directive().policy == "sed"
    second = controller()
    assert second.start(segment)["ok"]
    assert segment.read_controller()["epoch"] == epoch + 1
