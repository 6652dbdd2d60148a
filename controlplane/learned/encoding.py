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
FCT_MEAN: Final = FEATURES.index("fct_mean")
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


def _finite(x: NDArray[Any], greatest: float = 0.0) -> Floats:
    """Return the numbers as doubles; what is not finite becomes 0, and infinity `greatest`."""
    values = np.asarray(x, dtype=np.float64)
    # One sum tells whether there is anything to replace.
    return values if np.isfinite(values.sum()) else np.nan_to_num(values, nan=0.0, posinf=greatest, neginf=0.0)


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
    x, c = _finite(features), np.maximum(_finite(change), 0.0)
    idle = _finite(curves[..., 0], 1e30)
    slope = np.maximum(_finite(curves[..., SLOPE_N], 1e30) - idle, 0.0) / SLOPE_N
    r, n = active.shape
    count = np.maximum(active.sum(axis=1), 1).astype(np.float64)
    # Means and totals over the active servers, all in one product.
    summed = np.concatenate([x[:, :, :1], x[:, :, FCT_MEAN, None], c, np.log(np.maximum(slope, 1e-30))[:, :, None]], 2)
    total = (active.astype(np.float64)[:, None] @ summed)[:, 0]  # (R, 7)
    mean = total / count[:, None]
    in_flight, usual = mean[:, 0], np.maximum(mean[:, 1], 1e-9)  # (R,) flows, seconds
    scale = np.exp(mean[:, 6])
    completions, failures = c[:, :, 1], c[:, :, 3]
    rows = np.empty((r, n, len(SERVER_COLUMNS)))
    rows[:, :, 1:11] = x[:, :, 1:] / usual[:, None, None] + 0.01
    rows[:, :, 11:13] = (c[:, :, :2] + 0.5) / (mean[:, None, 2:4] + 0.5)
    rows[:, :, 13] = 1.0
    rows[:, :, 14] = (x[:, :, 0] + 0.5) / (in_flight[:, None] + 0.5)
    rows[:, :, 15] = idle / scale[:, None] + 0.01
    rows[:, :, 16] = slope / scale[:, None] + 0.01
    rows[:, :, 1:] = _log(rows[:, :, 1:])
    rows[:, :, 0] = np.log1p(np.maximum(x[:, :, 0], 0.0)) - 1.0
    rows[:, :, 13] = failures / (completions + failures + 1.0)
    if not active.all():
        rows *= active[:, :, None]
    opened, done, seconds, failed = total[:, 2], total[:, 3], total[:, 4], total[:, 5]
    fct = np.where(done > 0, seconds / np.maximum(done, 1.0), usual)
    whole = np.stack(
        [
            np.log(count) - 2.0,
            np.full(r, np.log2(balancers) / 2.0),
            np.log1p(in_flight) - 1.0,
            np.log1p(opened) / 3.0 - 1.0,
            _log(interval / usual),
            _log((done + 1.0) / (opened + 1.0)),
            failed / (done + failed + 1.0),
            _log(fct / usual),
        ],
        axis=1,
    )
    return Inputs(rows.astype(np.float32), whole.astype(np.float32), active)
