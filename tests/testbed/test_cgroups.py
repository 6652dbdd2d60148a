"""CPU quotas: what is written where in both versions of control groups, and a real quota that holds."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import cgroups


def mounts(folder: Path, text: str) -> Path:
    path = folder / "mounts"
    path.write_text(text.replace("ROOT", str(folder)))
    return path


def version_1(folder: Path, *, account: str = "cpuacct") -> Path:
    for name in {"cpu", account}:
        (folder / name).mkdir()
    options = "rw,cpu,cpuacct" if account == "cpu" else "rw,cpu"
    text = f"cgroup ROOT/cpu cgroup {options} 0 0\n"
    if account != "cpu":
        text += f"cgroup ROOT/{account} cgroup rw,cpuacct 0 0\n"
    return mounts(folder, "proc /proc proc rw 0 0\n" + text + "cgroup2 ROOT/unified cgroup2 rw 0 0\n")


def version_2(folder: Path, controllers: str = "cpuset cpu io memory pids") -> Path:
    root = folder / "unified"
    root.mkdir()
    (root / "cgroup.controllers").write_text(controllers + "\n")
    (root / "cgroup.subtree_control").write_text("memory\n")
    return mounts(folder, "cgroup2 ROOT/unified cgroup2 rw,nosuid 0 0\n")


def own(folder: Path, text: str = "0::/\n") -> Path:
    path = folder / "own"
    path.write_text(text)
    return path


def test_version_1_writes_quota_and_period_in_microseconds(tmp_path: Path):
    hierarchy = cgroups.find(version_1(tmp_path), own(tmp_path))
    assert hierarchy.version == 1
    outer = hierarchy.prepare("vk-t")
    group = hierarchy.group("vk-t/s1")
    group.make()
    group.limit(0.25, 0.005)
    assert outer.path == tmp_path / "cpu/vk-t"
    assert (group.path / "cpu.cfs_period_us").read_text() == "5000"
    assert (group.path / "cpu.cfs_quota_us").read_text() == "1250"
    group.weigh(32)
    assert (group.path / "cpu.shares").read_text() == "32768"
    assert group.account == tmp_path / "cpuacct/vk-t/s1"
    assert group.account.is_dir()


def test_version_1_with_one_tree_for_both_controllers_makes_one_group(tmp_path: Path):
    hierarchy = cgroups.find(version_1(tmp_path, account="cpu"), own(tmp_path))
    group = hierarchy.group("vk-t")
    group.make()
    (group.path / "cpuacct.usage").write_text("2500000000\n")
    assert group.account is None
    assert group.cpu_seconds() == 2.5


def test_version_2_hands_the_controller_down_and_writes_cpu_max(tmp_path: Path):
    hierarchy = cgroups.find(version_2(tmp_path), own(tmp_path))
    assert hierarchy.version == 2
    assert (tmp_path / "unified/cgroup.subtree_control").read_text() == "+cpu"
    (tmp_path / "unified/vk-t").mkdir()
    (tmp_path / "unified/vk-t/cgroup.subtree_control").write_text("")  # the kernel makes it
    hierarchy.prepare("vk-t")
    assert (tmp_path / "unified/vk-t/cgroup.subtree_control").read_text() == "+cpu"
    group = hierarchy.group("vk-t/s1")
    group.make()
    group.limit(1.5, 0.01)
    assert (group.path / "cpu.max").read_text() == "15000 10000"
    group.weigh(32)
    assert (group.path / "cpu.weight").read_text() == "3200"
    group.weigh(1000)
    assert (group.path / "cpu.weight").read_text() == "10000"  # the kernel's most
    (group.path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\nthrottled_usec 250000\n")
    assert group.cpu_seconds() == 1.5
    assert group.throttled_seconds() == 0.25


def test_version_2_falls_back_on_the_group_that_was_delegated(tmp_path: Path):
    path = version_2(tmp_path, controllers="memory")  # the root has no CPU controller
    mine = tmp_path / "unified/user.slice/mine"
    mine.mkdir(parents=True)
    (mine / "cgroup.controllers").write_text("cpu memory\n")
    (mine / "cgroup.subtree_control").write_text("cpu\n")
    assert cgroups.find(path, own(tmp_path, "0::/user.slice/mine\n")).base == mine


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("proc /proc proc rw 0 0\n", "no control groups are mounted"),
        ("cgroup2 ROOT/unified cgroup2 rw 0 0\n", "has no CPU controller"),
        ("cgroup ROOT/nowhere cgroup rw,cpu 0 0\n", "cannot be written: CPU quotas need root"),
    ],
)
def test_where_there_is_no_cpu_controller_the_reason_is_named(tmp_path: Path, text: str, why: str):
    version_2(tmp_path, controllers="hugetlb")
    with pytest.raises(cgroups.NoCgroups, match=why):
        cgroups.find(mounts(tmp_path, text), own(tmp_path))


def test_a_quota_below_a_millisecond_is_refused(tmp_path: Path):
    group = cgroups.find(version_1(tmp_path), own(tmp_path)).group("x")
    with pytest.raises(ValueError, match=r"0\.1 cores are 500 µs of a period of 5000 µs"):
        group.limit(0.1, 0.005)


@given(st.lists(st.floats(0.001, 64), min_size=1))
def test_the_period_is_the_shortest_in_which_every_quota_is_a_millisecond(cores: list[float]):
    period = cgroups.period_for(cores)
    assert 0.005 <= period <= 1.0
    assert min(cores) * period >= 0.001 * 0.999
    assert period == 0.005 or min(cores) * period <= 0.001 * 1.001


@pytest.fixture
def real() -> Iterator[cgroups.Group]:
    try:
        hierarchy = cgroups.find()
    except cgroups.NoCgroups as error:
        pytest.skip(f"no CPU quotas here: {error}")
    name = f"vk-test-{uuid.uuid4().hex[:8]}"
    hierarchy.prepare(name)
    group = hierarchy.group(f"{name}/inner")
    group.make()
    yield group
    assert hierarchy.group(name).remove()
    assert not hierarchy.leftovers(name)


_BURN = """
import time
began, used = time.monotonic(), time.process_time()
while time.monotonic() - began < 0.6:
    pass
print((time.process_time() - used) / (time.monotonic() - began))
"""


def test_a_real_group_gets_no_more_than_its_quota(real: cgroups.Group):
    real.limit(0.2, 0.005)
    done = subprocess.run(
        [sys.executable, "-c", _BURN], preexec_fn=real.enter, capture_output=True, timeout=30, check=True
    )
    assert float(done.stdout) < 0.26  # no lower bound: others compute on this machine, too
    used = real.cpu_seconds()
    assert used is not None
    assert used > 0.02
    throttled = real.throttled_seconds()
    assert throttled is not None
    assert throttled > 0.0


def test_a_quota_can_be_changed_under_a_running_process_in_both_directions(real: cgroups.Group):
    for cores, period in ((0.2, 0.005), (0.05, 0.02), (1.5, 0.005), (0.001, 1.0), (2.0, 0.01)):
        real.limit(cores, period)


def test_removing_a_group_kills_what_runs_in_it(real: cgroups.Group):
    child = subprocess.Popen(["sleep", "60"], preexec_fn=real.enter)
    try:
        deadline = time.monotonic() + 5
        while child.pid not in real.pids() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert real.pids() == [child.pid]
        assert real.remove()
        assert child.wait(5) == -9
        assert not os.path.exists(real.path)
    finally:
        child.kill()
        child.wait()
