"""A trace file, whatever its format: found out from its first lines, read in order and in bounded memory.

    trace = TraceFile("poisson.csv.gz")
    for block in trace.blocks():          # numpy records, see record.py
        ...
    print(trace.format, trace.problems)

A file may be read any number of times, standard input ("-") once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from testbed.traces.azure2019 import COUNTS_BEGIN, DURATIONS_BEGIN, durations_beside, read_azure2019
from testbed.traces.azure2019 import NAME as AZURE2019
from testbed.traces.azure2021 import Azure2021
from testbed.traces.binary import MAGIC, read_binary
from testbed.traces.columns import Field, parse_columns
from testbed.traces.jsonl import JsonLines
from testbed.traces.lines import CHUNK_BYTES, STDIN, Input
from testbed.traces.marllb import Marllb
from testbed.traces.order import REORDER_ROWS, in_order
from testbed.traces.record import Problems, Records, TraceError, excerpt, join
from testbed.traces.rows import Block, RowFormat, checked, read_rows
from testbed.traces.table import Table
from testbed.traces.wikibench import WikiBench

BINARY = "npy"
FORMATS = ("marllb", "wikibench", "azure2021", AZURE2019, "csv", "jsonl", BINARY)
_LINES_LOOKED_AT = 10

ROW_FORMATS: dict[str, Callable[[dict[str, Field]], RowFormat]] = {
    "marllb": lambda told: Marllb(),
    "wikibench": lambda told: WikiBench(),
    "azure2021": lambda told: Azure2021(),
    "csv": lambda told: Table(told),
    "jsonl": lambda told: JsonLines(told),
}


@dataclass(frozen=True)
class Options:
    """How a file is read. columns: `FIELD=COLUMN[:UNIT]` for CSV and JSONL. seed: of what Azure 2019 leaves open."""

    format: str = "auto"
    strict: bool = False
    columns: tuple[str, ...] = ()
    durations: str | None = None
    seed: int = 0
    reorder: int = REORDER_ROWS
    chunk_bytes: int = CHUNK_BYTES


class TraceFile:
    """A trace on disk, or from standard input."""

    def __init__(self, path: str | os.PathLike[str], options: Options | None = None) -> None:
        self.path = os.fspath(path)
        self.options = options or Options()
        self._told = parse_columns(self.options.columns)
        if self.options.format not in ("auto", *FORMATS):
            raise TraceError(f"no format is called '{self.options.format}': there are {', '.join(FORMATS)}")
        self._first: Input | None = self._open()
        self.name = self._first.name
        self.format = self.options.format
        if self.format == "auto":
            try:
                self.format = detect(self._first.beginning, self.name, self._told)
            except TraceError:
                self.close()
                raise
        self.work_unit = ""
        self.problems = Problems(self.name, self.options.strict)
        self.durations_problems: Problems | None = None

    def _open(self) -> Input:
        return Input(self.path, self.options.chunk_bytes)

    @property
    def is_rereadable(self) -> bool:
        return self.path != STDIN

    def blocks(self) -> Iterator[Records]:
        """Read from the start: records in order of time. `problems` counts anew."""
        if self._first is None and not self.is_rereadable:
            raise TraceError(f"{self.name}: can be read only once: use a file")
        file, self._first = self._first or self._open(), None
        self.problems = Problems(self.name, self.options.strict)
        with file:
            yield from self._read(file)

    def _read(self, file: Input) -> Iterator[Records]:
        if self.format == AZURE2019:
            self.work_unit = "s"
            yield from self._azure2019(file)
            return
        if self.format == BINARY:
            blocks: Iterable[Block] = read_binary(file, self.problems)
        else:
            blocks = self._rows(file)
        yield from in_order(blocks, self.options.reorder, self.problems)

    def _rows(self, file: Input) -> Iterator[Block]:
        form = ROW_FORMATS[self.format](self._told)
        for block in read_rows(file.pieces(), form, self.problems):
            self.work_unit = form.work_unit
            yield block

    def _azure2019(self, file: Input) -> Iterator[Records]:
        beside = self.options.durations or (durations_beside(self.path) if self.is_rereadable else None)
        if beside is None:
            yield from read_azure2019(file, None, self.problems, Problems(""), self.options.seed)
            return
        with Input(beside, self.options.chunk_bytes) as durations:
            self.durations_problems = Problems(durations.name, self.options.strict)
            yield from read_azure2019(file, durations, self.problems, self.durations_problems, self.options.seed)

    def records(self) -> Records:
        """Read all of it into memory."""
        return join(self.blocks())

    def close(self) -> None:
        if self._first is not None:
            self._first.close()
            self._first = None


def read(path: str | os.PathLike[str], options: Options | None = None) -> Records:
    """Return all records of a trace file."""
    return TraceFile(path, options).records()


def detect(beginning: bytes, name: str, told: dict[str, Field] | None = None) -> str:
    """Return the format that a file begins in; TraceError when it is none of them."""
    if beginning.startswith(MAGIC):
        return BINARY
    if beginning.startswith((COUNTS_BEGIN, DURATIONS_BEGIN)):
        return AZURE2019
    lines = [line.removesuffix(b"\r") for line in beginning.split(b"\n")]
    if len(lines) > 1:
        lines.pop()  # the last may be cut
    lines = [line for line in lines if line][: _LINES_LOOKED_AT + 1]
    if not lines:
        raise TraceError(f"{name}: is empty")
    if JsonLines(told).recognizes(lines[0]):
        return "jsonl"
    for known in ("marllb", "wikibench", "azure2021"):
        form = ROW_FORMATS[known]({})
        if form.takes_header(lines[0]) or 2 * _rows_of(form, lines) > len(lines):
            return known
    if Table(told).recognizes(lines[0]):
        return "csv"
    if told:
        Table(told).takes_header(lines[0])  # says which column is missing
    raise TraceError(
        f"{name}: no trace that is known: it begins {excerpt(lines[0])!r}; formats are {', '.join(FORMATS)}; "
        "a table or JSON Lines needs a time in its first line (--column)"
    )


def _rows_of(form: RowFormat, lines: list[bytes]) -> int:
    """How many of these lines are rows of this format?"""
    rows = 0
    for line in lines:
        try:
            checked(form.parse_row(line))
            rows += 1
        except ValueError:
            continue
    return rows
