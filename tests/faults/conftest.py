"""The farm that the fault tests share: four quick backends in two processes, put right before each test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.farm import Farm
from tests.faults.running import Running


@pytest.fixture(scope="session")
def shared_farm() -> Iterator[Farm]:
    with Farm.of_speeds([1, 1, 2, 4], workers=8, demand="fixed:1", processes=1) as farm:
        yield farm


@pytest.fixture
def farm(shared_farm: Farm) -> Farm:
    shared_farm.reset()
    return shared_farm


@pytest.fixture
def balancer(farm: Farm, tmp_path: Path) -> Callable[..., Running]:
    """Make a balancer in front of the farm's servers, or of those given."""

    def make(servers: list[Any] | None = None, **keys: Any) -> Running:
        return Running(tmp_path, farm.addresses if servers is None else servers, **keys)

    return make
