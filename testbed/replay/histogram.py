"""Completion times as an HdrHistogram: the percentile table that its plotters read, and its log (V2, compressed).

Values are whole microseconds up to an hour, exact to three digits. Source: Gil Tene, hdrhistogram.org; wrk2 and
vegeta write the same table.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from testbed.demand import Floats

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

HIGHEST_US = 3_600_000_000
DIGITS = 3
_US_PER_MS = 1000.0
INTERVALS_MOST = 600  # lines in a log


def histogram(fct_s: Floats) -> HdrHistogram:
    """Return the histogram of completion times in seconds. ImportError without the package hdrhistogram."""
    from hdrh.histogram import HdrHistogram

    found = HdrHistogram(1, HIGHEST_US, DIGITS)
    micros = np.clip(np.rint(fct_s * 1e6), 1, HIGHEST_US).astype(np.int64)
    for value, count in zip(*(column.tolist() for column in np.unique(micros, return_counts=True)), strict=True):
        found.record_value(value, count)
    return found


def write_hgrm(fct_s: Floats, path: Path) -> None:
    """Write the percentile table, in milliseconds."""
    found = histogram(fct_s)
    table = io.BytesIO()
    found.output_percentile_distribution(table, _US_PER_MS)
    # The package scales all but the deviation.
    deviation = f"StdDeviation   = {found.get_stddev() / _US_PER_MS:12.3f}".encode()
    path.write_bytes(re.sub(rb"StdDeviation   = *[0-9.]+", deviation, table.getvalue()))


def write_log(done_s: Floats, fct_s: Floats, path: Path, comment: str) -> None:
    """Write a log with a histogram of what was answered in each second (or longer, in a long run)."""
    from hdrh.log import HistogramLogWriter  # type: ignore[import-untyped]

    length_s = max(1.0, np.ceil(float(done_s.max(initial=0.0)) / INTERVALS_MOST))
    interval = (done_s // length_s).astype(np.int64)
    with path.open("w") as file:
        writer: Any = HistogramLogWriter(file)
        writer.output_comment(comment)
        writer.output_log_format_version()
        writer.output_legend()
        for number in np.unique(interval).tolist():
            begin_s = number * length_s
            one = histogram(fct_s[interval == number])
            # Times as HdrHistogram takes them: milliseconds, and 0 would mean "ask the histogram".
            one.set_start_time_stamp(begin_s * 1e3)
            one.set_end_time_stamp((begin_s + length_s) * 1e3)
            writer.output_interval_histogram(one, max_value_unit_ratio=_US_PER_MS)
