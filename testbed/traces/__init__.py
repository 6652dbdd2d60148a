"""Traces: arrivals and work as they were recorded or drawn, in one canonical record (record.py).

    trace = TraceFile("poisson_for_loop_rate_150.csv")
    world = replay_world(trace.records(), servers, seconds_per_work=2e-9).at_load(0.8)

    record      the record, bad rows, checksums
    reader      TraceFile: formats, detection, order
    transform   speed, load, time window, limit
    order       reordering, merging, splitting
    writer      CSV, JSON Lines, NumPy
    generate    nine kinds of made-up traces, the same bytes from the same seed
    statistics  what `vickrey trace info` prints
    adapters    to the simulator and to the load generator

Formats: marllb, wikibench, azure2021, azure2019, table (CSV), jsonl, binary (NumPy).
"""

from testbed.traces.reader import FORMATS, Options, TraceFile, read
from testbed.traces.record import RECORD, Problems, Records, TraceError, checksum, join, records_from

__all__ = [
    "FORMATS",
    "RECORD",
    "Options",
    "Problems",
    "Records",
    "TraceError",
    "TraceFile",
    "checksum",
    "join",
    "read",
    "records_from",
]
