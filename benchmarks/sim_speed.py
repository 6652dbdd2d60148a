"""How fast the simulator is: flows a second on one core, the balancing core's dispatch and accounting included.

    python benchmarks/sim_speed.py [--quick] [--json] [--rounds N]

The worlds run under a fixed (n + ½)/speed curve at 90 % load, every fourth server 4x faster; a run is one C call. The
last row is a policy in Python that observes, decides and publishes every 50 flows, as the controller does. Figures
are medians over rounds, interleaved; CPU time of this process, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.policies.lsq import LeastConnections
from dataplane.simulator import BoundedPareto, Exponential, Poisson, Server, Simulation, World
from dataplane.simulator.engine import gsed_curves

MEAN = 0.01


def farm(n: int, **server: object) -> World:
    servers = [Server(speed=4.0 if i % 4 == 0 else 1.0, **server) for i in range(n)]  # type: ignore[arg-type]
    return World(servers, Poisson(1.0), Exponential(MEAN), seed=1, flows=1_000_000).at_load(0.9)


def worlds() -> dict[str, World]:
    return {
        "16 servers": farm(16),
        "16 servers, no records": replace(farm(16), records=0),
        "16 servers, four workers each": farm(16, workers=4),
        "16 servers, processor sharing": farm(16, service="sharing"),
        "16 servers, bounded Pareto": replace(farm(16), demand=BoundedPareto(MEAN)),
        "16 servers, 1 ms links": farm(16, delay=0.001),
        "16 servers, 4 balancers, own views": replace(farm(16), balancers=4),
        "16 servers, 4 balancers, one view": replace(farm(16), balancers=4, view="shared"),
        "2 servers": farm(2),
        "64 servers": farm(64),
        "256 servers": farm(256),
        "1024 servers": farm(1024),
        "4096 servers": farm(4096),
    }


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def flows_per_second(world: World) -> float:
    simulation = Simulation(world)
    simulation.publish_bids(gsed_curves([server.speed for server in world.servers]))
    begin = cpu_seconds()
    result = simulation.run()
    spent = cpu_seconds() - begin
    assert result.totals.finished
    return result.totals.arrivals / spent


def control_steps_per_second(flows: int) -> float:
    world = replace(farm(16), flows=flows)
    interval = 50 / world.arrivals.mean_rate
    steps = 0

    class Counting(LeastConnections):
        def decide(self, observation):  # type: ignore[no-untyped-def]
            nonlocal steps
            steps += 1
            return super().decide(observation)

    simulation, begin = Simulation(world), cpu_seconds()
    simulation.run(Counting(), interval=interval)
    return steps / (cpu_seconds() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the flows, three rounds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=0)
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    flows = 200_000 if arguments.quick else 1_000_000
    every = {name: replace(world, flows=flows) for name, world in worlds().items()}
    speeds: dict[str, list[float]] = {name: [] for name in every}
    steps = []
    for _ in range(rounds):
        for name, world in every.items():
            speeds[name].append(flows_per_second(world))
        steps.append(control_steps_per_second(flows // 10))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    if arguments.json:
        document = {"flows_per_second": medians, "control_steps_per_second": statistics.median(steps), "rounds": rounds}
        print(json.dumps(document, indent=2))
        return
    for name, value in medians.items():
        print(f"{name:40} {value / 1e6:6.2f} million flows a second")
    print(f"{'16 servers, a policy in Python':40} {statistics.median(steps):6.0f} control steps a second")


if __name__ == "__main__":
    main()
