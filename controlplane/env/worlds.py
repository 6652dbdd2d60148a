"""Worlds to learn in: the default one, and how to make others at random for each episode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dataplane.simulator import Exponential, Poisson, Server, World

# So long that only a time limit ends an episode, seconds.
ENDLESS = 1e7


def default_world(balancers: int = 1) -> World:
    """Return eight servers of speeds 1 … 4, four workers each, at 85 % load: about 109 flows in 0.2 s."""
    servers = [Server(speed=speed, workers=4) for speed in (1, 1, 1, 1, 2, 2, 4, 4)]
    return World(servers, Poisson(1.0), Exponential(0.1), duration=ENDLESS, balancers=balancers).at_load(0.85)


def random_worlds(
    *,
    servers: tuple[int, int] = (4, 16),
    speeds: Sequence[float] = (1.0, 2.0, 4.0),
    workers: Sequence[int] = (1, 2, 4),
    load: tuple[float, float] = (0.5, 0.95),
    demand: float = 0.1,
    balancers: int = 1,
) -> Callable[[np.random.Generator], World]:
    """Return a maker of worlds that differ in number and speed of servers, and in load: domain randomisation."""

    def make(generator: np.random.Generator) -> World:
        n = int(generator.integers(servers[0], servers[1] + 1))
        k = int(generator.choice(workers))
        farm = [Server(speed=float(speed), workers=k) for speed in generator.choice(speeds, n)]
        world = World(farm, Poisson(1.0), Exponential(demand), duration=ENDLESS, balancers=balancers)
        return world.at_load(float(generator.uniform(*load)))

    return make
