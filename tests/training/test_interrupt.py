"""Ctrl-C: a checkpoint, a status, and no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from controlplane.cli import main
from controlplane.learned.policy_file import read
from tests.training.small import TORCH, changes_for, options, write_scenario

pytest.importorskip("torch", reason=TORCH)


def processes_of(group: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.getpgid(int(name)) == group:
                    with open(f"/proc/{name}/stat") as file:
                        if file.read().rpartition(")")[2].split()[0] != "Z":
                            found.append(int(name))
            except (ProcessLookupError, FileNotFoundError):
                continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_checkpoint_that_goes_on_and_no_process(number, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "controlplane.cli", "train", "es", "--scenario", write_scenario(tmp_path)]
    command += ["--out", str(out), "--workers", "2", "--steps", "100000000", *options(changes_for("es"))]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        progress = out / "progress.jsonl"
        while not (progress.exists() and progress.read_text().count("\n") > 3):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: to all of them
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "interrupted after" in said
        assert "Traceback" not in said
        # Python's tracker of semaphores ends when it finds its parent gone.
        deadline = time.monotonic() + 20
        while (left := processes_of(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    steps = read(out / "last.safetensors")[1].training.steps
    assert steps > 0
    read(out / "policy.safetensors")
    assert main(["train", "--resume", str(out), "--steps", str(steps + 48), "--quiet"]) == 0
    assert read(out / "last.safetensors")[1].training.steps >= steps + 48
