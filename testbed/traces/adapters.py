"""A trace as the arrivals of a simulation, and as the schedule of the load generator.

Both start with the first arrival and hold the trace in memory. Work becomes seconds at speed 1 by `seconds_per_work`:
1 when the trace's work is seconds, the time of one turn of the loop for MARLLB's `n`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from testbed.load.generator import Target
from testbed.load.schedule import Schedule
from testbed.traces.record import Records, TraceError

if TYPE_CHECKING:
    from dataplane.simulator import Server, World
    from dataplane.simulator import Trace as Arrivals
    from dataplane.simulator.world import Demand, Works


def _from_first(records: Records) -> NDArray[np.int64]:
    if len(records) == 0:
        raise TraceError("the trace is empty")
    t_ns: NDArray[np.int64] = records["t_ns"] - records["t_ns"][0]
    if (np.diff(t_ns) < 0).any():
        raise TraceError("the trace is out of order")
    return t_ns


def arrivals(records: Records, balancers: int = 1) -> Arrivals:
    """Return the arrivals for `World.arrivals`, with keys, and with balancers where there are several."""
    from dataplane.simulator import Trace as Arrivals

    times_ns = _from_first(records).astype(np.uint64)
    if balancers == 1:
        return Arrivals(times_ns, keys=records["key"].copy())
    if int(records["balancer"].max()) >= balancers:
        raise TraceError(
            f"the trace has a balancer {records['balancer'].max()}: they are numbered from 0 and below {balancers}"
        )
    return Arrivals(times_ns, keys=records["key"].copy(), balancers=records["balancer"].astype(np.uint32))


def works(records: Records, seconds_per_work: float = 1.0) -> Works:
    """Return the demands for `World.demand`, row by row beside arrivals()."""
    from dataplane.simulator.world import Works

    work = records["work"] * seconds_per_work
    if np.isnan(work).any():
        raise TraceError("the trace does not tell the work of every row: give the world a demand of its own")
    return Works(np.asarray(work, dtype=np.float64))


def replay_world(
    records: Records,
    servers: Sequence[Server],
    *,
    seconds_per_work: float = 1.0,
    demand: Demand | None = None,
    balancers: int = 1,
    **world: Any,
) -> World:
    """Return a world in which this trace arrives. demand: instead of the trace's work. world: World's other fields.

    With several balancers each flow arrives where the trace says, unless `split` says otherwise.
    """
    from dataplane.simulator import World

    if balancers > 1:
        world.setdefault("split", "trace")
    by_trace = world.get("split") == "trace"
    return World(
        servers,
        arrivals(records, balancers if by_trace else 1),
        demand or works(records, seconds_per_work),
        balancers=balancers,
        **world,
    )


def schedule(records: Records, seconds_per_work: float = 1.0) -> Schedule:
    """Return when requests leave, and their demands as `?d=` milliseconds; where the trace has none, none is sent."""
    return Schedule(
        np.asarray(_from_first(records) * 1e-9, dtype=np.float64),
        np.asarray(records["work"] * (seconds_per_work * 1e3)),
    )


def loop_schedule(records: Records) -> Schedule:
    """The same with the trace's work as it stands, for a Target that sends it as `?n=`: see loop_target()."""
    return Schedule(
        np.asarray(_from_first(records) * 1e-9, dtype=np.float64), np.asarray(records["work"], dtype=np.float64)
    )


def loop_target(target: Target) -> Target:
    """Return the target whose requests carry the work as `?n=`, turns of a loop, as MARLLB's pages take it."""
    from dataclasses import replace

    return replace(target, demand_query="n")
