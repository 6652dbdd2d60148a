"""A topology (`vickrey testbed`) as the servers of a comparison: Apaches and others under CPU quotas, in namespaces.

What a balancer may be told of them: as weight a server's share of the CPU, as maxconn its workers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from testbed.compare.measure import Servers
from testbed.peers.peer import Server


@contextlib.contextmanager
def running(name: str) -> Iterator[tuple[Servers, list[str], list[Server]]]:
    """Start a topology, by name or path. ConfigError for a file that cannot be, StartError when it does not come up."""
    from testbed import topology_file
    from testbed.topology import Topology

    with Topology(topology_file.load(name)) as topology:
        able = [placed.cpu or placed.workers * placed.speed for placed in topology.servers]
        truth = [
            Server(placed.address, max(1, round(100 * one / max(able))), placed.workers)
            for placed, one in zip(topology.servers, able, strict=True)
        ]
        yield topology, topology.names, truth
