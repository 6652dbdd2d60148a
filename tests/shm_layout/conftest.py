"""Segments for tests: names that nobody else has, and nothing left in /dev/shm afterwards."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm_layout.segment import Limits, Segment, segment_name

_counter = itertools.count()
SMALL = Limits(max_servers=8, max_workers=2, reservoir_slots=16, ring_slots=64, journal_slots=64, table_slots=97)


@pytest.fixture
def name() -> Iterator[str]:
    """A free name; whatever lies under it at the end is removed."""
    name = segment_name(f"test{os.getpid()}-{next(_counter)}", "web")
    yield name
    Path(f"/dev/shm{name}").unlink(missing_ok=True)


@pytest.fixture
def segment(name: str) -> Iterator[Segment]:
    with Segment.create(name, SMALL, "web") as segment:
        yield segment
        segment.unlink()
