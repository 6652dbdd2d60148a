"""What a learned policy sees: a few dozen numbers a server and a few for all, without units, the same in training and
in service.

All of it is to be had from the observation of a live balancer and from an environment's reading. Times are taken
relative to the service's own mean and as logarithms, so that a farm whose flows take a second looks like one whose
flows take a millisecond; counts are relative to the servers' mean. FEATURE_VERSION changes with any of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shm_layout.features import FEATURES

FEATURE_VERSION: Final = 1

Floats = NDArray[np.float64]
Rows = NDArray[np.float32]

# Columns of the rows: the 11 features first.
SERVER_COLUMNS: Final = (
    *FEATURES,
    "flows_share",
    "completions_share",
    "failed_share",
    "in_flight_share",
    "bid_idle",
    "bid_slope",
)
GLOBAL_COLUMNS: Final = (
    "servers",
    "balancers",
    "in_flight",
    "flows",
    "interval",
    "completions",
    "failed_share",
    "fct",
)
# Flows in flight to which the slope of a base curve is taken (curves are exact there).
SLOPE_N: Final = 8
# Logarithms are cut here: e^±5.
CUT: Final = 5.0


@dataclass(frozen=True)
class Inputs:
    """What the network takes, for R balancers of up to n servers."""

    rows: Rows  # (R, n, SERVER_COLUMNS)
    whole: Rows  # (R, GLOBAL_COLUMNS)
    active: NDArray[np.bool_]  # (R, n)


def _log(x: Floats) -> Floats:
    return np.asarray(np.clip(np.log(np.maximum(x, 1e-12)), -CUT, CUT))


def _mean(x: Floats, active: NDArray[np.bool_]) -> Floats:
    """Return the mean over the active servers, (R, 1)."""
    number = np.maximum(active.sum(axis=1, keepdims=True), 1)
    return np.asarray(np.where(active, x, 0.0).sum(axis=1, keepdims=True) / number)


def encode(
    features: NDArray[Any],
    active: NDArray[np.bool_],
    change: NDArray[Any],
    curves: NDArray[Any],
    interval: float,
    balancers: int,
) -> Inputs:
    """Return the inputs.

    features: (R, n, 11), columns FEATURES. active: (R, n). change: (R, n, 4) flows, completions, seconds of their FCT
    and failures since the step before (env.reading.COUNTERS). curves: (R, n, >= 9) the base policy's bids; zeros where
    there is none. interval: seconds. Values that are not finite count as 0.
    """
    x = np.nan_to_num(np.asarray(features, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    c = np.maximum(np.nan_to_num(np.asarray(change, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0), 0.0)
    b = np.nan_to_num(np.asarray(curves[..., : SLOPE_N + 1], dtype=np.float64), nan=0.0, posinf=1e30, neginf=0.0)
    usual = np.maximum(_mean(x[:, :, FEATURES.index("fct_mean")], active), 1e-9)  # (R, 1) seconds
    n = x[:, :, 0]
    n_mean = _mean(n, active)
    flows, completions, failures = c[:, :, 0], c[:, :, 1], c[:, :, 3]
    idle, slope = b[:, :, 0], np.maximum(b[:, :, SLOPE_N] - b[:, :, 0], 0.0) / SLOPE_N
    scale = np.exp(_mean(np.log(np.maximum(slope, 1e-30)), active))
    columns = [
        np.log1p(np.maximum(n, 0.0)) - 1.0,
        *(_log(x[:, :, i] / usual + 0.01) for i in range(1, len(FEATURES))),
        _log((flows + 0.5) / (_mean(flows, active) + 0.5)),
        _log((completions + 0.5) / (_mean(completions, active) + 0.5)),
        failures / (completions + failures + 1.0),
        _log((n + 0.5) / (n_mean + 0.5)),
        _log(idle / scale + 0.01),
        _log(slope / scale + 0.01),
    ]
    rows = np.stack(columns, axis=2) * active[:, :, None]
    total = np.where(active[:, :, None], c, 0.0).sum(axis=1)  # (R, 4)
    count = np.maximum(active.sum(axis=1), 1).astype(np.float64)
    fct = np.where(total[:, 1] > 0, total[:, 2] / np.maximum(total[:, 1], 1.0), usual[:, 0])
    whole = np.stack(
        [
            np.log(count) - 2.0,
            np.full(len(count), np.log2(balancers) / 2.0),
            np.log1p(n_mean[:, 0]) - 1.0,
            np.log1p(total[:, 0]) / 3.0 - 1.0,
            _log(interval / usual[:, 0]),
            _log((total[:, 1] + 1.0) / (total[:, 0] + 1.0)),
            total[:, 3] / (total[:, 1] + total[:, 3] + 1.0),
            _log(fct / usual[:, 0]),
        ],
        axis=1,
    )
    return Inputs(rows.astype(np.float32), whole.astype(np.float32), active)
