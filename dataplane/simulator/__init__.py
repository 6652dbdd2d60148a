"""The simulator's Python face: describe a world, run policies in it, read what became of every flow.

    servers = [Server(speed=4.0), Server(), Server()]
    world = World(servers, Poisson(100.0), Exponential(0.01), flows=100_000).at_load(0.8)
    print(Simulation(world).run(policy).summary())

The engine is C (dataplane/sim) and calls the balancing core that serves real traffic. Times are float64 seconds here
and nanoseconds there; flow records are a numpy view of what C wrote.

    world        what is simulated: servers, arrivals, demands, events
    engine       Simulation: one run
    memory       segments in private memory with the simulation's clock
    control      a policy's hand on the simulated balancers
    results      records and summaries
    references   what no proxy can reach: central queue, least work left, SRPT, bounds, the exact optimum
"""

from dataplane.simulator.engine import Simulation, SimulationError
from dataplane.simulator.results import Result, Summary
from dataplane.simulator.world import (
    MMPP,
    BoundedPareto,
    Crash,
    Deterministic,
    Drain,
    Exponential,
    Hyperexponential,
    Join,
    Leave,
    Lognormal,
    OnOff,
    Poisson,
    Profile,
    RateChange,
    Recover,
    Server,
    Sine,
    SpeedChange,
    Trace,
    WeightChange,
    Works,
    World,
)

__all__ = [
    "MMPP",
    "BoundedPareto",
    "Crash",
    "Deterministic",
    "Drain",
    "Exponential",
    "Hyperexponential",
    "Join",
    "Leave",
    "Lognormal",
    "OnOff",
    "Poisson",
    "Profile",
    "RateChange",
    "Recover",
    "Result",
    "Server",
    "Simulation",
    "SimulationError",
    "Sine",
    "SpeedChange",
    "Summary",
    "Trace",
    "WeightChange",
    "Works",
    "World",
]
