"""Azure Functions 2019: invocations a minute per function, and percentiles of their durations, in two files a day.

    invocations_per_function_md.anon.d01.csv       HashOwner,HashApp,HashFunction,Trigger,1,…,1440
    function_durations_percentiles.anon.d01.csv    HashOwner,HashApp,HashFunction,Average,…,percentile_Average_0,…_100

What the files do not say is drawn, from a seed: a minute's invocations arrive independently and uniformly within it,
and a duration (the work) comes from the function's percentiles, linear between them. A function without durations has
no work. In memory are the counts that are not zero and one minute's arrivals, never the whole trace.

Source: Shahrad et al., "Serverless in the Wild", USENIX ATC 2020; AzurePublicDataset, CC-BY. Its percentiles are those
of averages over 30 s, as its description says: rare long invocations are smoothed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from testbed.traces.arithmetic import Draws
from testbed.traces.digits import Text, Words, hashed, hashed_one, real_one, unsigned
from testbed.traces.lines import Input
from testbed.traces.record import Problems, Records, TraceError, records_from
from testbed.traces.rows import another_kind, lines_of

NAME = "azure2019"
COUNTS_BEGIN = b"HashOwner,HashApp,HashFunction,Trigger,"
DURATIONS_BEGIN = b"HashOwner,HashApp,HashFunction,Average,"
MINUTE_NS = 60 * 10**9
_NAMED = 4  # columns before the minutes
_COUNT_MOST = 10**7  # invocations a minute; also what bounds the memory
_PERCENTILES = (0, 1, 25, 50, 75, 99, 100)
_LEVELS = np.array(_PERCENTILES) / 100.0


def durations_beside(path: str) -> Path | None:
    """Return the durations file that belongs to an invocations file by its name, if it is there."""
    name = Path(path).name.replace("invocations_per_function_md", "function_durations_percentiles")
    beside = Path(path).with_name(name)
    return beside if beside.name != Path(path).name and beside.is_file() else None


def read_azure2019(
    counts_file: Input, durations_file: Input | None, problems: Problems, durations_problems: Problems, seed: int
) -> Iterator[Records]:
    """Yield records in order of time."""
    keys, minutes, functions, counts = _read_counts(counts_file, problems)
    known, table = (
        _read_durations(durations_file, durations_problems) if durations_file else (keys[:0], np.empty((0, 7)))
    )
    percentiles = np.full((len(keys), len(_PERCENTILES)), np.nan)
    if len(known):
        at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        found = known[at] == keys
        percentiles[found] = table[at[found]]
    order = np.argsort(minutes, kind="stable")
    minutes, functions, counts = minutes[order], functions[order], counts[order]
    edges = [*np.flatnonzero(np.diff(minutes, prepend=-1)).tolist(), len(minutes)]
    draws = Draws(seed, "azure2019")
    for low, high in pairwise(edges):
        function = np.repeat(functions[low:high], counts[low:high])
        offset = (draws.uniform(len(function)) * MINUTE_NS).astype(np.int64)
        work = _from_percentiles(percentiles[function], draws.uniform(len(function)))
        records = records_from(int(minutes[low]) * MINUTE_NS + offset, work, key=keys[function])
        problems.good += len(records)
        yield records[np.argsort(records["t_ns"], kind="stable")]


def _from_percentiles(rows: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one duration a row, in seconds."""
    at = np.minimum(np.searchsorted(_LEVELS, u, side="right"), len(_LEVELS) - 1) - 1
    row = np.arange(len(u))
    low, high = rows[row, at], rows[row, at + 1]
    share = (u - _LEVELS[at]) / (_LEVELS[at + 1] - _LEVELS[at])
    milliseconds = np.rint((low + (high - low) * share) * 1e6)  # whole nanoseconds
    seconds: NDArray[np.float64] = milliseconds / 1e9
    return seconds


Counts = tuple[Words, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _read_counts(file: Input, problems: Problems) -> Counts:
    """Return the functions' keys, and minute, function and count of each count that is not zero."""
    keys: list[Words] = []
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
    n_functions = n_lines = columns = 0
    for piece in file.pieces():
        text = Text(piece)
        start, end = lines_of(text)
        lines = np.arange(n_lines + 1, n_lines + len(end) + 1)
        n_lines += len(end)
        if columns == 0:
            columns = _columns(text.slice(int(start[0]), int(end[0])), file.name)
            start, end, lines = start[1:], end[1:], lines[1:]
        start, end, lines = start[end > start], end[end > start], lines[end > start]
        comma = text.find(ord(","))
        first = np.searchsorted(comma, start)
        right = np.searchsorted(comma, end) - first == columns - 1
        ends = np.empty((int(right.sum()), columns), dtype=np.intp)
        ends[:, :-1] = comma[first[right][:, None] + np.arange(columns - 1)]
        ends[:, -1] = end[right]
        begins = np.concatenate([start[right][:, None], ends[:, :-1] + 1], axis=1)
        values, ok = unsigned(text, begins[:, _NAMED:].ravel(), ends[:, _NAMED:].ravel())
        ok &= values <= _COUNT_MOST
        good = (
            ok.reshape(len(ends), columns - _NAMED).all(axis=1)
            & (ends[:, 1] > begins[:, 1])
            & (ends[:, 2] > begins[:, 2])
        )
        for line, low, high in zip(lines[~right].tolist(), start[~right].tolist(), end[~right].tolist(), strict=True):
            n = text.slice(low, high).count(b",") + 1
            problems.add(line, f"expected {columns} columns, not {n}", text.slice(low, high))
        for i in np.flatnonzero(~good).tolist():
            what = f"a count is no whole number up to {_COUNT_MOST:,}, or a name is empty"
            problems.add(int(lines[right][i]), what, text.slice(int(begins[i, 0]), int(ends[i, -1])))
        rows = values.reshape(len(ends), columns - _NAMED)[good].astype(np.int64)
        chain = hashed(text, begins[good, 1], ends[good, 1])
        keys.append(hashed(text, begins[good, 2], ends[good, 2], chain=chain))
        function, minute = np.nonzero(rows)
        parts.append((minute, function + n_functions, rows[function, minute]))
        n_functions += len(rows)
    if columns == 0:
        raise TraceError(f"{file.name}: is empty")
    if problems.bad and not n_functions:
        raise another_kind(NAME, problems)
    none = np.empty(0, dtype=np.int64)
    columns_of = [np.concatenate([none, *(part[i] for part in parts)]) for i in range(3)]
    return np.concatenate([np.empty(0, dtype=np.uint64), *keys]), columns_of[0], columns_of[1], columns_of[2]


def _columns(line: bytes, name: str) -> int:
    """Check the header of the counts, and return how many columns it has."""
    if line.startswith(DURATIONS_BEGIN):
        raise TraceError(f"{name}: these are the durations: name the invocations, and these with --durations")
    if not line.startswith(COUNTS_BEGIN):
        raise TraceError(f"{name} is no {NAME} trace: the first line does not begin {COUNTS_BEGIN.decode()}1,2,…")
    return line.count(b",") + 1


def _read_durations(file: Input, problems: Problems) -> tuple[Words, NDArray[np.float64]]:
    """Return functions' keys, ascending, and their percentiles in milliseconds."""
    wanted: list[int] = []
    columns = number = 0
    found: dict[int, list[float]] = {}
    for piece in file.pieces():
        for line in piece.split(b"\n")[:-1]:
            number += 1
            fields = line.rstrip(b"\r").split(b",")
            if columns == 0:
                columns, wanted = len(fields), _wanted(fields, file.name)
                continue
            if fields == [b""]:
                continue
            try:
                if len(fields) != columns:
                    raise ValueError(f"expected {columns} columns, not {len(fields)}")
                values = [real_one(fields[at]) for at in wanted]
                if values[0] < 0 or values != sorted(values):
                    raise ValueError("percentiles are negative or fall")
                found[hashed_one(fields[2], hashed_one(fields[1]))] = values
            except ValueError as error:
                problems.add(number, str(error), line)
    keys = np.array(sorted(found), dtype=np.uint64)
    return keys, np.array([found[int(key)] for key in keys]).reshape(len(keys), len(_PERCENTILES))


def _wanted(header: list[bytes], name: str) -> list[int]:
    names = [f"percentile_Average_{p}".encode() for p in _PERCENTILES]
    missing = [column.decode() for column in names if column not in header]
    if missing or header[:3] != DURATIONS_BEGIN.split(b",")[:3]:
        raise TraceError(f"{name}: no durations of {NAME}: no column {missing[0] if missing else 'HashOwner'}")
    return [header.index(column) for column in names]
