"""Removes all that a topology made, by its id alone: whoever made it may be dead, and may have died at any moment.

Everything bears the id: processes in their environment, control groups, namespaces, cables and the folder in their
names. Nothing here relies on what the state says was made; an interrupted sweep is repeated.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from testbed import cgroups, namespaces
from testbed.topology_server import marked
from testbed.topology_state import ID_PREFIX, State, all_states, find, is_process, path_of

_ID = re.compile(ID_PREFIX + r"[0-9a-f]{4}")
_OWNER_GRACE_S = 20.0
_STRAY_AGE_S = 30.0


@dataclass
class Swept:
    """What was there, and what did not go."""

    processes: int = 0
    namespaces: int = 0
    cgroups: int = 0
    folders: int = 0
    left: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.processes + self.namespaces + self.cgroups + self.folders


def folder_of(topology: str) -> Path:
    return Path(tempfile.gettempdir()) / topology


def sweep(topology: str, folder: Path | None = None) -> Swept:
    """Remove everything of a topology but its state. topology: its id."""
    assert _ID.fullmatch(topology), topology
    swept = Swept()
    names = namespaces.existing(f"{topology}-")
    killed: set[int] = set()
    deadline = time.monotonic() + 10.0
    while True:
        living = set(marked(f"{topology}:")) | set(namespaces.pids_in(names))
        killed |= living
        if not living or time.monotonic() > deadline:
            break
        for pid in living:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    swept.left += [f"process {pid}" for pid in sorted(living)]

    with contextlib.suppress(cgroups.NoCgroups):
        hierarchy = cgroups.find()
        if topology in hierarchy.leftovers(topology):
            swept.cgroups += 1
        group = hierarchy.group(topology)
        killed |= {pid for below in (group.path.rglob("cgroup.procs")) for pid in _pids(below)}
        if not group.remove():
            swept.left.append(f"control group {group.path}")
    swept.processes = len(killed)

    for link in namespaces.links(f"{topology}."):
        namespaces.remove("", link)
    for name in names:
        namespaces.remove(name)
        swept.namespaces += 1
    swept.left += [f"namespace {name}" for name in namespaces.existing(f"{topology}-")]
    swept.left += [f"link {name}" for name in namespaces.links(f"{topology}.")]

    for place in {folder_of(topology), folder or folder_of(topology)}:
        if place.is_dir():
            swept.folders += 1
            shutil.rmtree(place, ignore_errors=True)
            if place.exists():
                swept.left.append(str(place))
    return swept


def _pids(file: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(pid) for pid in file.read_text().split()]
    return []


def bring_down(state: State) -> Swept:
    """End a topology: ask its starter, wait, insist, and remove what is left."""
    if state.is_alive and state.owner != os.getpid():
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.owner, signal.SIGTERM)
        deadline = time.monotonic() + _OWNER_GRACE_S
        while is_process(state.owner, state.owner_started) and time.monotonic() < deadline:
            current = find(state.name)
            if not state.is_program and (current is None or current.id != state.id):
                break  # it has cleaned up; a program of which the topology was only a part may go on
            time.sleep(0.05)
        else:
            if is_process(state.owner, state.owner_started):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(state.owner, signal.SIGKILL)
    swept = sweep(state.id, Path(state.folder))
    forget(state)
    return swept


def forget(state: State) -> None:
    """Remove the state's file, unless another topology has taken the name."""
    current = find(state.name)
    if current is None or current.id == state.id:
        path_of(state.name).unlink(missing_ok=True)


def strays() -> list[str]:
    """Ids of topologies of which things are left but no state: it was removed by hand, or lay in another run folder."""
    known = {state.id for state in all_states()}
    names = [*namespaces.existing(ID_PREFIX), *namespaces.links(ID_PREFIX)]
    names += [path.name for path in Path(tempfile.gettempdir()).glob(f"{ID_PREFIX}*")]
    with contextlib.suppress(cgroups.NoCgroups):
        names += cgroups.find().leftovers(ID_PREFIX)
    found = {match[0] for name in names if (match := _ID.match(name))}
    return sorted(topology for topology in found - known if _is_orphan(topology))


def _is_orphan(topology: str) -> bool:
    """Is the starter of this topology gone? Without its word, one that was made lately or runs counts as alive."""
    try:
        pid, started = (int(word) for word in (folder_of(topology) / "owner").read_text().split())
    except (OSError, ValueError):
        places = [namespaces.RUN / name for name in namespaces.existing(f"{topology}-")] + [folder_of(topology)]
        ages = [time.time() - place.stat().st_mtime for place in places if place.exists()]
        return min(ages, default=_STRAY_AGE_S) >= _STRAY_AGE_S and not marked(f"{topology}:")
    return not is_process(pid, started)
