"""Order in time: small disorder is mended in bounded memory, several traces become one, one becomes several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from testbed.traces.record import Problems, Records, empty
from testbed.traces.rows import Block

REORDER_ROWS = 1 << 16


def in_order(blocks: Iterable[Block], window: int, problems: Problems) -> Iterator[Records]:
    """Yield records in order of time; a row may stand up to `window` rows too late. One that stands later is bad.

    What comes out depends on the rows alone, not on the blocks that they come in.
    """
    held: Records = empty()
    held_lines: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    last = None
    for records, lines in _pieces_of(blocks, window or REORDER_ROWS):
        if len(held):
            records, lines = np.concatenate([held, records]), np.concatenate([held_lines, lines])
        t = records["t_ns"]
        if not (t[1:] >= t[:-1]).all():
            if window == 0:
                latest = np.maximum.accumulate(t)
                late = t < latest
                _refuse(records[late], lines[late], latest[late], 0, problems)
                records, lines = records[~late], lines[~late]
            else:
                order = np.argsort(t, kind="stable")
                records, lines = records[order], lines[order]
        if last is not None and records["t_ns"][0] < last:
            late_rows = int(np.searchsorted(records["t_ns"], last))
            passed = np.full(late_rows, last)
            _refuse(records[:late_rows], lines[:late_rows], passed, window, problems)
            records, lines = records[late_rows:], lines[late_rows:]
        out = max(len(records) - window, 0)
        if out:
            last = records["t_ns"][out - 1]
            yield records[:out]
        held, held_lines = records[out:], lines[out:]
    if len(held):
        yield held


def _refuse(
    records: Records, lines: NDArray[np.int64], passed: NDArray[np.int64], window: int, problems: Problems
) -> None:
    for line, t_ns, then in zip(lines.tolist(), records["t_ns"].tolist(), passed.tolist(), strict=True):
        behind = (then - t_ns) * 1e-9
        problems.good -= 1
        problems.add(line, f"out of order, {behind:.6g} s behind (rows may stand {window:,} rows too late: --reorder)")


def _pieces_of(blocks: Iterable[Block], rows: int) -> Iterator[Block]:
    """Yield the same rows in pieces of so many."""
    parts: list[Block] = []
    there = 0
    for block in blocks:
        parts.append(block)
        there += len(block[0])
        if there < rows:
            continue
        records = np.concatenate([part[0] for part in parts])
        lines = np.concatenate([part[1] for part in parts])
        whole = there // rows * rows
        for at in range(0, whole, rows):
            yield records[at : at + rows], lines[at : at + rows]
        parts, there = [(records[whole:], lines[whole:])], there - whole
    if there:
        yield np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def merged(traces: Iterable[Iterable[Records]]) -> Iterator[Records]:
    """Merge traces that are in order, by time; of rows at the same time that of the earlier trace comes first."""
    sources = [filter(len, trace) for trace in traces]
    held = [next(source, None) for source in sources]
    while any(block is not None for block in held):
        # A row may go when no trace can still bring one before it: up to the last time that each other one shows.
        ends = [None if block is None else int(block["t_ns"][-1]) for block in held]
        parts = []
        for i, block in enumerate(held):
            if block is None:
                continue
            count = len(block)
            for k, end in enumerate(ends):
                if k != i and end is not None:
                    at = np.searchsorted(block["t_ns"], end, side="right" if i < k else "left")
                    count = min(count, int(at))
            if count:
                parts.append(block[:count])
                held[i] = block[count:] if count < len(block) else next(sources[i], None)
        together = np.concatenate(parts)
        yield together[np.argsort(together["t_ns"], kind="stable")]


def by_balancer(blocks: Iterable[Records]) -> Iterator[tuple[int, Records]]:
    """Yield (balancer, records): each block's rows, balancer by balancer."""
    for block in blocks:
        balancers = block["balancer"]
        for balancer in np.unique(balancers).tolist():
            yield balancer, block[balancers == balancer]
