"""Traces of one row a line: the common reader, and what a format has to say for itself.

A format defines its rows twice. `parse_row` takes one line, knows every oddity and names what is wrong; it is the
definition. `parse_many` takes thousands of lines at once and does the plain ones; lines that it leaves go to parse_row.
The tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from testbed.traces.digits import PAD, Mask, Offsets, Text
from testbed.traces.lines import LINE_MOST
from testbed.traces.record import PATIENCE, T_NS_LIMIT, WORK_LIMIT, Problems, Records, Row, TraceError

Block: TypeAlias = tuple[Records, NDArray[np.int64]]  # records, and the lines that they stood on


class RowFormat(Protocol):
    """A kind of file with one flow a line."""

    name: str

    @property
    def work_unit(self) -> str:
        """ "s", "n", or "" when there is no work or its unit is not known."""

    def takes_header(self, line: bytes) -> bool:
        """Look at the first line: is it a header? TraceError when the file cannot be read without another one."""

    def parse_row(self, line: bytes) -> Row:
        """Read one line, without its end; ValueError says what is wrong with it."""

    def parse_many(self, text: Text, start: Offsets, end: Offsets) -> tuple[Records, Mask]:
        """Read what lines can be read together; the mask says which were."""


def read_rows(pieces: Iterable[bytes], form: RowFormat, problems: Problems) -> Iterator[Block]:
    """Yield the records of pieces of whole lines. Blank lines count, and are nothing else."""
    lines_before = 0
    first = True
    for piece in pieces:
        text = Text(piece)
        start, end = lines_of(text)
        lines = np.arange(lines_before + 1, lines_before + 1 + len(end))
        lines_before += len(end)
        filled = end > start
        if not filled.all():
            start, end, lines = start[filled], end[filled], lines[filled]
        if first and len(start):
            first = False
            if form.takes_header(text.slice(int(start[0]), int(end[0]))):
                start, end, lines = start[1:], end[1:], lines[1:]
        if len(start) == 0:
            continue
        records, ok = form.parse_many(text, start, end)
        ok &= in_range(records) & (end - start <= LINE_MOST)
        if not ok.all():
            _read_one_by_one(text, start, end, lines, records, ok, form, problems)
            records, lines = records[ok], lines[ok]
        problems.good += len(records)
        if len(records):
            yield records, lines
    if problems.bad and not problems.good:
        raise another_kind(form.name, problems)


def lines_of(text: Text) -> tuple[Offsets, Offsets]:
    """Return where the lines begin and end, without newlines and one carriage return before."""
    end: Offsets = text.find(ord("\n"))[:-2]
    start = np.concatenate([[PAD], end + 1])[:-1]
    return start, end - (text.bytes[end - 1] == ord("\r")) * (end > start)


def _read_one_by_one(
    text: Text,
    start: Offsets,
    end: Offsets,
    lines: NDArray[np.int64],
    records: Records,
    ok: Mask,
    form: RowFormat,
    problems: Problems,
) -> None:
    """Read the lines that parse_many left, in place."""
    first_good = int(np.argmax(ok)) if ok.any() else len(ok)
    has_good = problems.good > 0
    for i in np.flatnonzero(~ok).tolist():
        line = text.slice(int(start[i]), int(end[i]))
        try:
            if len(line) > LINE_MOST:
                raise ValueError(f"the line is longer than {LINE_MOST:,} bytes")
            records[i] = checked(form.parse_row(line))
            ok[i] = has_good = True
        except ValueError as error:
            problems.add(int(lines[i]), str(error), line)
            if problems.bad >= PATIENCE and not has_good and first_good > i:
                raise another_kind(form.name, problems) from None


def in_range(records: Records) -> Mask:
    """Return which records may be: parse_row has not been asked yet."""
    t, work = records["t_ns"], records["work"]
    ok: Mask = (t > -T_NS_LIMIT) & (t < T_NS_LIMIT) & ~(work < 0) & ~(work > WORK_LIMIT)
    return ok


def checked(row: Row) -> Row:
    if abs(row[0]) >= T_NS_LIMIT:
        raise ValueError("the time is out of range")
    if row[1] < 0:
        raise ValueError("the work is negative")
    if row[1] > WORK_LIMIT:
        raise ValueError("the work is out of range")
    return row


def another_kind(form: str, problems: Problems) -> TraceError:
    bad = problems.first[0]
    return TraceError(f"{problems.name} is no {form} trace: line {bad.line}: {bad.reason}: {bad.text}")


class Columns:
    """Fields between separators, when every line has the same number of them."""

    def __init__(self, text: Text, start: Offsets, end: Offsets, separator: int, count: int) -> None:
        self.text, self._start, self._end, self._count = text, start, end, count
        at = text.find(separator)
        first = np.searchsorted(at, start)
        self._at, self._first = at, first
        # The separator after the last expected one lies beyond the line, and those before it in it.
        last = len(at) - 1
        self.ok: Mask = at[np.minimum(first + count - 1, last)] >= end
        if count > 1:
            self.ok &= at[np.minimum(first + count - 2, last)] < end

    def __getitem__(self, column: int) -> tuple[Offsets, Offsets]:
        """Return where a column begins and ends; of lines that are not ok, anywhere in the line."""
        at, first, last = self._at, self._first, len(self._at) - 1
        start = self._start if column == 0 else at[np.minimum(first + column - 1, last)] + 1
        end = self._end if column == self._count - 1 else at[np.minimum(first + column, last)]
        return np.minimum(start, self._end), np.minimum(end, self._end)


def field_error(name: str, error: ValueError) -> ValueError:
    """Return the error of a field, with its name before it."""
    return ValueError(f"{name} {error}")
