"""The observation table: 11 features a server, from reservoirs and server words; and percentiles from histograms.

    n_flow_on, fct_mean, fct_p90, fct_std, fct_mean_decay, fct_p90_decay, flow_duration_mean, flow_duration_p90,
    flow_duration_std, flow_duration_mean_decay, flow_duration_p90_decay

Reservoirs of several workers are merged in proportion to the flows that each was offered: a worker's sample weighs
(samples offered to its reservoir) / (samples in it). The decayed statistics multiply that by 2^-(age / half life) and
divide by the sum of the weights. Ages count from the server's newest sample: that cancels in the quotient, and a server
that was quiet for an hour still has a mean. The p90 is the least value at which at least 90 % of the weight is reached.

A server with no sample of a metric is unknown, not fast: its features take the mean over the servers that have samples,
and `prior` seconds (standard deviation 0) when none has. Rows of free slots are 0 with active False.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shm_layout.layout import HISTOGRAM_BUCKETS, HISTOGRAM_LOW, METRIC_DURATION, METRIC_FCT
from shm_layout.segment import Reservoirs, Segment

Floats = NDArray[np.float64]

_STATISTICS = ("mean", "p90", "std", "mean_decay", "p90_decay")
FEATURES: Final = (
    "n_flow_on",
    *(f"fct_{statistic}" for statistic in _STATISTICS),
    *(f"flow_duration_{statistic}" for statistic in _STATISTICS),
)
HALF_LIFE: Final = 2.0  # seconds
PRIOR: Final = 0.1  # seconds

_QUANTILE = 0.9
_HAIR = 1e-9  # so that the ninth of ten equal weights reaches 90 % in spite of rounding
# Servers worked on at once: their samples and weights then fit the processor's cache.
_CHUNK = 128
_STD = _STATISTICS.index("std")


@dataclass(frozen=True, slots=True)
class Features:
    """The table of one service, one row a server slot."""

    values: Floats  # (servers, 11) seconds; n_flow_on: flows; columns as FEATURES
    active: NDArray[np.bool_]  # (servers,) the slot holds a server
    samples: NDArray[np.int64]  # (servers, 2) samples of FCT and of flow duration that the row rests on


def read_features(
    segment: Segment, ids: NDArray[np.uint64] | None = None, *, half_life: float = HALF_LIFE, prior: float = PRIOR
) -> Features:
    """Read the table of a segment. ids: (servers,) of the slots, by default those of the settings; 0: free.

    Raises what reading the segment raises; SegmentEmptyError when ids are left out and no settings were published.
    """
    if ids is None:
        ids = segment.read_settings().ids
    return features_of(
        ids,
        segment.read_words(0, len(ids)).in_flight,
        segment.read_reservoirs(METRIC_FCT, 0, len(ids)),
        segment.read_reservoirs(METRIC_DURATION, 0, len(ids)),
        half_life=half_life,
        prior=prior,
    )


def features_of(
    ids: NDArray[np.uint64],
    in_flight: ArrayLike,
    fct: Reservoirs,
    duration: Reservoirs,
    *,
    half_life: float = HALF_LIFE,
    prior: float = PRIOR,
) -> Features:
    """Return the table from its parts, (servers,) ids and in_flight; pure, for any source of reservoirs."""
    active = ids != 0
    values = np.zeros((len(ids), len(FEATURES)))
    samples = np.zeros((len(ids), 2), dtype=np.int64)
    values[:, 0] = in_flight
    for column, reservoirs in enumerate((fct, duration)):
        statistics, samples[:, column] = _statistics(reservoirs, ids, half_life)
        _fill_unknown(statistics, samples[:, column] > 0, prior)
        values[:, 1 + 5 * column : 6 + 5 * column] = statistics
    values[~active] = 0.0
    return Features(values, active, samples)


def percentiles(histogram: ArrayLike, q: ArrayLike) -> Floats:
    """Return the percentiles q (0 … 100) of FCT histograms (…, HISTOGRAM_BUCKETS), seconds, shape (…, len(q)).

    Linear within a bucket, whose width is an eighth of its octave: off by 12 % of the value at most. An empty histogram
    gives NaN: nothing is known of its flows. The last bucket has no upper end and counts as its lower one.
    """
    counts = np.asarray(histogram, dtype=np.float64)
    wanted = np.atleast_1d(np.asarray(q, dtype=np.float64)) / 100.0
    if counts.shape[-1] != HISTOGRAM_BUCKETS:
        raise ValueError(f"histogram of {counts.shape[-1]} buckets, expected {HISTOGRAM_BUCKETS}")
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise ValueError("percentiles outside of 0 … 100")
    upto = np.cumsum(counts, axis=-1)
    total = upto[..., -1:]
    rank = wanted * total  # (…, q)
    # The bucket in which the rank is reached; rank 0 lies in the first bucket that has something.
    reached = (upto[..., None, :] >= rank[..., None]) & (upto[..., None, :] > 0)
    bucket = reached.argmax(axis=-1)
    inside = np.take_along_axis(counts, bucket, axis=-1)
    before = np.take_along_axis(upto, bucket, axis=-1) - inside
    share = np.divide(rank - before, inside, out=np.zeros_like(rank), where=inside > 0).clip(0, 1)
    low = np.concatenate(([0.0], HISTOGRAM_LOW[1:]))
    high = np.concatenate((HISTOGRAM_LOW[1:], HISTOGRAM_LOW[-1:]))
    return np.where(total > 0, low[bucket] + share * (high[bucket] - low[bucket]), np.nan)


def _statistics(r: Reservoirs, ids: NDArray[np.uint64], half_life: float) -> tuple[Floats, NDArray[np.int64]]:
    """Return (servers, 5) statistics in seconds and (servers,) samples; a server without samples has a row of zeros."""
    out = np.zeros((len(ids), len(_STATISTICS)))
    samples = np.zeros(len(ids), dtype=np.int64)
    known = (r.ids == ids) & (ids != 0) & (r.counts > 0)  # (workers, servers)
    some = np.flatnonzero(known.any(axis=0))  # servers with nothing cost nothing
    for begin in range(0, len(some), _CHUNK):
        picked = some[begin : begin + _CHUNK]
        together = int(picked[-1] - picked[0]) == len(picked) - 1
        rows: slice | NDArray[np.intp] = (
            slice(picked[0], picked[-1] + 1) if together else picked
        )  # a slice copies nothing
        # (rows, workers, slots): one server's samples of all workers side by side
        chunk = r.samples[:, rows].swapaxes(0, 1)
        present = (chunk["time_ns"] != 0) & known[:, rows].T[:, :, None]
        held = present.sum(axis=2)  # (rows, workers)
        weights: Floats | None = None
        if chunk.shape[1] > 1:
            weights = (present * (r.counts[:, rows].T / np.maximum(held, 1))[:, :, None]).reshape(len(picked), -1)
        times, values, there = (a.reshape(len(picked), -1) for a in (chunk["time_ns"], chunk["value_ns"], present))
        out[rows] = _of_samples(times, values, there, weights, half_life)
        samples[rows] = held.sum(axis=1)
    out[samples == 0] = 0.0
    return out, samples


def _of_samples(
    times: NDArray[np.uint64],
    values: NDArray[np.uint64],
    present: NDArray[np.bool_],
    weights: Floats | None,
    half_life: float,
) -> Floats:
    """Return (rows, 5) statistics of (rows, samples) times and values in nanoseconds; weights None: all equal."""
    newest = np.where(present, times, np.uint64(0)).max(axis=1, keepdims=True)
    age = np.subtract(newest, np.minimum(times, newest)).astype(np.float64)
    plain = present.astype(np.float64) if weights is None else weights
    decayed = plain * np.exp2(age / (-half_life * 1e9))

    # One sort for both quantiles: the place of a sample rides in the low bits of its value. Absent ones go last.
    bits = np.uint64((values.shape[1] - 1).bit_length())
    greatest = np.uint64(2**63) >> bits
    keys = np.where(present, np.minimum(values, greatest), greatest + np.uint64(1)) << bits
    keys |= np.arange(values.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    place = (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.intp)
    place += np.arange(len(values))[:, None] * values.shape[1]
    keys >>= bits

    seconds: Floats = np.multiply(values, 1e-9, dtype=np.float64)
    out = np.empty((len(values), len(_STATISTICS)))
    out[:, 0] = _mean(seconds, plain)
    if weights is None:
        first = np.ceil(present.sum(axis=1) * (_QUANTILE - _HAIR)).astype(np.intp) - 1
        out[:, 1] = _at(keys, first)
    else:
        out[:, 1] = _p90(keys, weights.ravel().take(place))
    deviation = seconds - out[:, :1]
    deviation *= deviation
    out[:, 2] = np.sqrt(_mean(deviation, plain))
    out[:, 3] = _mean(seconds, decayed)
    out[:, 4] = _p90(keys, decayed.ravel().take(place))
    return out


def _mean(values: Floats, weights: Floats) -> Floats:
    total = weights.sum(axis=1)
    return np.asarray(np.einsum("ij,ij->i", values, weights) / np.where(total > 0, total, 1.0))


def _p90(sorted_ns: NDArray[np.uint64], weights: Floats) -> Floats:
    """Return (rows,) the least value at which 90 % of the row's weight is reached, in seconds."""
    upto = np.cumsum(weights, axis=1)
    return _at(sorted_ns, np.count_nonzero(upto < upto[:, -1:] * (_QUANTILE - _HAIR), axis=1))


def _at(sorted_ns: NDArray[np.uint64], column: NDArray[np.intp]) -> Floats:
    column = column.clip(0, sorted_ns.shape[1] - 1)
    return np.asarray(sorted_ns[np.arange(len(column)), column] * 1e-9)


def _fill_unknown(statistics: Floats, known: NDArray[np.bool_], prior: float) -> None:
    """Give the rows without samples the mean of the others, or the prior."""
    if known.any():
        statistics[~known] = statistics[known].mean(axis=0)
    else:
        statistics[:] = prior
        statistics[:, _STD] = 0.0
