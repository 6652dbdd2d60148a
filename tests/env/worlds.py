"""Small worlds that the tests of the environments share."""

from dataplane.simulator import (
    Crash,
    Drain,
    Exponential,
    Join,
    Leave,
    Lognormal,
    Poisson,
    Recover,
    Server,
    SpeedChange,
    World,
)

INTERVAL = 0.1


def farm(n: int = 4, **world: object) -> World:
    """n servers, every second one twice as fast, 80 % load, demands of 10 ms."""
    servers = [Server(speed=1.0 + i % 2, workers=2, weight=10 * (1 + i % 2)) for i in range(n)]
    return World(servers, Poisson(1.0), Exponential(0.01), **({"duration": 1e6} | world)).at_load(0.8)  # type: ignore[arg-type]


def eventful() -> World:
    """Servers that slow down, crash, recover, join, leave and drain within two seconds."""
    servers = [Server(speed=1.0 + i % 3, workers=1 + i % 2, present=i != 4, delay=0.001 * (i == 2)) for i in range(6)]
    events = (
        SpeedChange(0.35, 0, 0.25),
        Crash(0.45, 1),
        Join(0.62, 4),
        Leave(0.75, 3),
        Recover(0.95, 1),
        Drain(1.15, 5),
        Join(1.45, 3),
    )
    world = World(servers, Poisson(1.0), Lognormal(0.01, 2.0), duration=1e6, events=events, detect=0.1)
    return world.at_load(0.6)
