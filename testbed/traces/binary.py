"""Canonical records as a NumPy file: `np.load(file, mmap_mode="r")` is the trace.

The header is read and written here, because a trace is written before its length is known and read in pieces.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import numpy as np

from testbed.traces.lines import Input
from testbed.traces.record import RECORD, Problems, TraceError
from testbed.traces.rows import Block, in_range

MAGIC = b"\x93NUMPY"
HEADER_BYTES = 256  # of what is written: room for any length
_ROWS = 1 << 15
_HEADER_MOST = 1 << 14
_SHAPE = re.compile(r"'shape': \((\d{1,18}),\)")


def header(rows: int) -> bytes:
    """Return the header of a file of so many rows, as long for any number."""
    text = f"{{'descr': {RECORD.descr!r}, 'fortran_order': False, 'shape': ({rows},), }}"
    body = text.ljust(HEADER_BYTES - 11) + "\n"
    return MAGIC + b"\x01\x00" + struct.pack("<H", len(body)) + body.encode()


def read_binary(file: Input, problems: Problems) -> Iterator[Block]:
    """Yield the records of a NumPy file."""
    expected = _read_header(file)
    done = 0
    while done < expected:
        data = file.read(min(_ROWS, expected - done) * RECORD.itemsize)
        if len(data) < min(_ROWS, expected - done) * RECORD.itemsize:
            there = done + len(data) // RECORD.itemsize
            raise TraceError(f"{file.name}: ends after {there:,} of {expected:,} records")
        records = np.frombuffer(data, dtype=RECORD)
        rows = np.arange(done + 1, done + len(records) + 1)
        done += len(records)
        ok = in_range(records)
        for row in rows[~ok].tolist():
            problems.add(row, "time or work is out of range")
        problems.good += int(ok.sum())
        if ok.any():
            yield records[ok], rows[ok]


def _read_header(file: Input) -> int:
    """Return the number of records."""
    start = file.read(10)
    if len(start) < 10 or not start.startswith(MAGIC) or start[6] not in (1, 2, 3):
        raise TraceError(f"{file.name}: no NumPy file")
    length = struct.unpack("<H", start[8:])[0]
    if start[6] > 1:
        length += struct.unpack("<H", file.read(2).ljust(2, b"\0"))[0] << 16
    if length > _HEADER_MOST:
        raise TraceError(f"{file.name}: a NumPy file, but not one of trace records")
    text = file.read(length).decode("latin-1")
    shape = _SHAPE.search(text)
    if repr(RECORD.descr) not in text or "'fortran_order': False" not in text or shape is None:
        names = ", ".join(RECORD.names or ())
        raise TraceError(f"{file.name}: a NumPy file, but not one of trace records ({names})")
    return int(shape[1])
