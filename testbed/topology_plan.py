"""From a topology's file to what is started: quotas on this machine, places, and each server's settings."""

from __future__ import annotations

import os
import re
from pathlib import Path

from testbed.backends import apache
from testbed.backends.backend import Spec
from testbed.demand import parse_demand
from testbed.namespaces import Namespace
from testbed.processes import free_port
from testbed.topology_file import AiohttpGroup, ApacheGroup, TopologyFile
from testbed.topology_state import Placed

TURN_NS = 5.0  # of ?n= where nothing computes and the file says nothing: about what PHP takes
PORT, CONTROL = 8080, 8081  # in namespaces, where every server has an address of its own


def plan_cpu(file: TopologyFile, cores: int) -> dict[str, float]:
    """Return each server's quota in cores; the servers without one are missing.

    machine_share scales them down together, never up: on a machine that is large enough they have what the file says.
    """
    wanted = {name: group.cpu for group in file.servers for name in group.names() if group.cpu is not None}
    if file.machine_share is None or not wanted:
        return wanted
    scale = min(1.0, file.machine_share * cores / sum(wanted.values()))
    return {name: round(cpu * scale, 9) for name, cpu in wanted.items()}


def with_backend(file: TopologyFile, backend: str) -> TopologyFile:
    """The same topology with servers of one kind: an Apache of c cores becomes c workers that wait, and vice versa."""
    groups: list[ApacheGroup | AiohttpGroup] = []
    for group in file.servers:
        if group.backend == backend:
            groups.append(group)
        elif isinstance(group, ApacheGroup):
            workers = max(1, round(group.cpu or os.cpu_count() or 1))
            speed = (group.cpu or workers) / workers
            groups.append(
                AiohttpGroup(name=group.name, count=group.count, backend="aiohttp", workers=workers, speed=speed)
            )
        else:
            cpu = group.cpu or group.workers * group.speed
            groups.append(ApacheGroup(name=group.name, count=group.count, backend="apache", cpu=cpu))
    scaled = any(group.cpu is not None for group in groups)
    return file.model_copy(update={"servers": tuple(groups), "machine_share": file.machine_share if scaled else None})


def place(group: ApacheGroup | AiohttpGroup, name: str, space: Namespace | None, cpu: float | None) -> Placed:
    """Decide where a server will be. On loopback aiohttp picks its own ports, Apache is given free ones."""
    placed = Placed(
        name=name,
        backend=group.backend,
        host=space.address if space else "127.0.0.1",
        port=PORT if space else 0,
        control=CONTROL if space else 0,
        workers=group.workers,
        speed=group.speed if isinstance(group, AiohttpGroup) else 1.0,
        cpu=cpu,
        mpm=group.mpm if isinstance(group, ApacheGroup) else "",
        namespace=space.name if space else "",
        link=space.link if space else "",
    )
    if isinstance(group, ApacheGroup) and space is None:
        placed.port, placed.control = free_port(), free_port()
    return placed


def spec_of(file: TopologyFile, group: ApacheGroup | AiohttpGroup, placed: Placed, seed: int) -> apache.Apache | Spec:
    """What a server of this group at this place is started from."""
    pages = file.pages
    if isinstance(group, ApacheGroup):
        return apache.Apache(
            name=placed.name,
            host=placed.host,
            port=placed.port,
            status_port=placed.control,
            mpm=group.mpm,
            workers=group.workers,
            backlog=group.backlog,
            keepalive_s=group.keepalive_s,
            turn_s=pages.turn,
            demand_ms=parse_demand(pages.demand).mean_ms,
            size=pages.size,
            wiki_ms=pages.wiki * 1e3,
        )
    return Spec(
        name=placed.name,
        host=placed.host,
        port=placed.port,
        control=placed.control,
        workers=group.workers,
        speed=group.speed,
        limit=group.limit,
        demand=pages.demand,
        size=pages.size,
        cpu=group.burn,
        turn_ns=pages.turn * 1e9 or TURN_NS,
        seed=seed,
    )


def default_name(argument: str) -> str:
    """The name that a topology's file gives it: simple for ./Simple.yaml."""
    return re.sub(r"[^a-z0-9-]+", "-", Path(argument).stem.lower()).strip("-") or "topology"
