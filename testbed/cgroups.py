"""CPU quotas by control groups, version 1 and 2: a group per server, its limit, what it used, and its end.

    hierarchy = find()
    group = hierarchy.group("vk-tb1a2b/s1")
    group.make(); group.limit(0.25, period_s=0.005)
    …a process writes itself into it: group.enter()
    group.cpu_seconds(); group.remove()

The kernel hands out the quota once a period, and a group that has used it up stands still until the next one: with the
usual 100 ms, a request of 10 ms waits up to 75 ms at a quarter of a core. Hence periods of 5 to 10 ms. Neither period
nor quota may be below 1 ms (kernel/sched/core.c, min_cfs_quota_period).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PERIOD_S = 0.005
PERIOD_MOST_S = 0.010  # above it, waiting for the next period is what one measures
QUOTA_LEAST_S = 0.001
PERIOD_LIMIT_S = 1.0  # the kernel's


class NoCgroups(RuntimeError):
    """There is no CPU controller that we may use; the text says why."""


def period_for(cores: Iterable[float]) -> float:
    """Return the shortest period, in seconds, in which the least of these quotas is one that the kernel takes.

    5 ms, longer where a quota below 0.2 cores asks for it. Raises ValueError for less than 0.001 cores.
    """
    least = min(cores, default=1.0)
    period = max(PERIOD_S, QUOTA_LEAST_S / least)
    if period > PERIOD_LIMIT_S:
        raise ValueError(f"a quota of {least:g} cores is below the least that the kernel knows, 0.001")
    return round(period, 6)


@dataclass(frozen=True)
class Group:
    """One control group; version 1 keeps CPU limits and CPU accounts in two trees that may differ."""

    version: int
    path: Path
    account: Path | None  # version 1: the folder in the cpuacct tree, where it is another

    def _folders(self) -> list[Path]:
        return [self.path] + ([self.account] if self.account else [])

    def make(self) -> None:
        for folder in self._folders():
            folder.mkdir(exist_ok=True)

    def limit(self, cores: float, period_s: float = PERIOD_S) -> None:
        """Give so many cores at most; ValueError for what the kernel would refuse."""
        period, quota = round(period_s * 1e6), round(cores * period_s * 1e6)
        if quota < QUOTA_LEAST_S * 1e6:
            raise ValueError(
                f"{cores:g} cores are {quota} µs of a period of {period} µs: the kernel's least is 1000 µs"
            )
        if self.version == 2:
            (self.path / "cpu.max").write_text(f"{quota} {period}")
            return
        # Each of the two is checked against the other as it is now: without a limit, any period is taken.
        (self.path / "cpu.cfs_quota_us").write_text("-1")
        (self.path / "cpu.cfs_period_us").write_text(str(period))
        (self.path / "cpu.cfs_quota_us").write_text(str(quota))

    def weigh(self, tasks: int) -> None:
        """Let it compete as so many tasks would: by default a whole group weighs as much as one process outside of it.

        Without this, whatever else computes on the machine would starve the servers far below their quotas.
        """
        if self.version == 2:
            (self.path / "cpu.weight").write_text(str(min(max(100 * tasks, 1), 10_000)))
        else:
            (self.path / "cpu.shares").write_text(str(min(max(1024 * tasks, 2), 262_144)))

    def enter(self) -> None:
        """Move this process into the group: to be called in a child, before exec."""
        for folder in self._folders():
            (folder / "cgroup.procs").write_text("0")

    def pids(self) -> list[int]:
        found: set[int] = set()
        for folder in self._folders():
            with contextlib.suppress(OSError):
                found.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
        return sorted(found - {0})

    def cpu_seconds(self) -> float | None:
        """User and system time of all that ever ran in it; None where there is no account."""
        try:
            if self.version == 2:
                rows = dict(line.split() for line in (self.path / "cpu.stat").read_text().splitlines())
                return int(rows["usage_usec"]) / 1e6
            return int(((self.account or self.path) / "cpuacct.usage").read_text()) / 1e9
        except (OSError, KeyError, ValueError):
            return None

    def throttled_seconds(self) -> float | None:
        """How long it stood still with its quota used up, summed over cores."""
        try:
            rows = dict(line.split() for line in (self.path / "cpu.stat").read_text().splitlines())
            return int(rows["throttled_usec"]) / 1e6 if self.version == 2 else int(rows["throttled_time"]) / 1e9
        except (OSError, KeyError, ValueError):
            return None

    def remove(self, timeout_s: float = 5.0) -> bool:
        """Kill all that runs in it and in the groups below, and remove them; False when something does not go."""
        deadline = time.monotonic() + timeout_s
        while True:
            removed = [_remove_tree(folder) for folder in self._folders()]
            gone = all(removed)
            if gone or time.monotonic() > deadline:
                return gone
            time.sleep(0.01)


def _remove_tree(folder: Path) -> bool:
    """Try once; what was killed needs a moment to leave."""
    if not folder.is_dir():
        return True
    for below in [entry for entry in folder.iterdir() if entry.is_dir()]:
        _remove_tree(below)
    with contextlib.suppress(OSError):
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.is_dir()


@dataclass(frozen=True)
class Hierarchy:
    """Where groups may be made."""

    version: int
    base: Path
    account: Path | None = None

    def group(self, name: str) -> Group:
        return Group(self.version, self.base / name, self.account / name if self.account else None)

    def prepare(self, name: str) -> Group:
        """Make a group that shall contain others, with the CPU controller for those."""
        outer = self.group(name)
        if self.version == 2:
            _delegate(self.base)
        outer.make()
        if self.version == 2:
            _delegate(outer.path)
        return outer

    def leftovers(self, prefix: str) -> list[str]:
        """Names of the groups that begin so."""
        return sorted(entry.name for entry in self.base.glob(f"{prefix}*") if entry.is_dir())


def _delegate(folder: Path) -> None:
    """Version 2: let the groups below this one have CPU limits."""
    control = folder / "cgroup.subtree_control"
    if "cpu" not in control.read_text().split():
        control.write_text("+cpu")


def find(mounts: Path = Path("/proc/self/mounts"), own: Path = Path("/proc/self/cgroup")) -> Hierarchy:
    """Return the hierarchy that has the CPU controller. Raises NoCgroups.

    mounts, own: the kernel's lists of mounts, and of the groups of this process.
    """
    version_2 = None
    trees: dict[str, Path] = {}
    for line in mounts.read_text().splitlines():
        _, where, kind, options = line.split(" ")[:4]
        path = Path(where.encode().decode("unicode_escape"))  # a blank is written \040
        if kind == "cgroup2":
            version_2 = version_2 or path
        elif kind == "cgroup":
            for option in options.split(","):
                trees.setdefault(option, path)
    if "cpu" in trees:
        account = trees.get("cpuacct")
        base = trees["cpu"]
        if not os.access(base, os.W_OK):
            raise NoCgroups(f"{base} cannot be written: CPU quotas need root")
        return Hierarchy(1, base, account if account != base and account is not None else None)
    if version_2 is None:
        raise NoCgroups("no control groups are mounted")
    refused = []
    for base in _places(version_2, own):
        problem = _why_not(base)
        if not problem:
            return Hierarchy(2, base)
        refused.append(problem)
    raise NoCgroups("; ".join(refused))


def _places(root: Path, own: Path) -> Sequence[Path]:
    """Where one might make groups: at the root, as root; else in the group that was delegated to us."""
    mine = ""
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            if line.startswith("0::"):
                mine = line[3:].strip("/")
    return [root, root / mine] if mine else [root]


def _why_not(base: Path) -> str:
    try:
        if "cpu" not in (base / "cgroup.controllers").read_text().split():
            return f"{base} has no CPU controller"
        if not os.access(base, os.W_OK) or not os.access(base / "cgroup.subtree_control", os.W_OK):
            return f"{base} cannot be written: CPU quotas need root or a delegated group"
        _delegate(base)
    except OSError as error:  # a group that has processes of its own cannot hand the controller on
        return f"{base}: {error.strerror}"
    return ""
