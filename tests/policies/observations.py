"""Observations made by hand, for tests of policies that need no segment."""

from __future__ import annotations

from typing import Any

import numpy as np

from controlplane.policy import CURVE_N, Floats, Observation, Profile
from shm_layout.layout import HISTOGRAM_BUCKETS, OUTCOMES


def profile(servers: int, **arrays: Floats) -> Profile:
    """Return a profile of zeros but for the arrays given."""
    zeros = {name: np.zeros((servers, len(CURVE_N))) for name in Profile.__slots__}
    return Profile(**(zeros | arrays))


def observation(servers: int, **fields: Any) -> Observation:
    """Return an observation of idle servers of weight 1, but for the fields given."""
    histogram = fields.pop("histogram", np.zeros((servers, HISTOGRAM_BUCKETS)))
    given: dict[str, Any] = {
        "now": 100.0,
        "interval": 0.2,
        "balancers": 1,
        "objective": "mean",
        "ids": np.arange(1, servers + 1, dtype=np.uint64),
        "names": tuple(f"s{i}" for i in range(servers)),
        "active": np.ones(servers, dtype=bool),
        "weight": np.ones(servers),
        "maxconn": np.full(servers, np.inf),
        "in_flight": np.zeros(servers),
        "profile": profile(servers),
        "flows": np.zeros(servers),
        "outcomes": np.zeros((servers, len(OUTCOMES))),
        "fct_sum": np.zeros(servers),
        "auctions_won": np.zeros(servers),
        "bid_sum": np.zeros(servers),
        "read_histogram": lambda: histogram,
    }
    return Observation(**(given | fields))
