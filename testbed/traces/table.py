"""Tables with a header: CSV, and the same with semicolons, tabs or bars.

Cells may be quoted as in RFC 4180, but hold no newline. Columns are found by their names (columns.py).
"""

from __future__ import annotations

import csv

import numpy as np

from testbed.traces.columns import DIGITS, DIVISOR, Field, Mapping, mapping_for
from testbed.traces.digits import Mask, Offsets, Text, hashed, real, scaled, unsigned
from testbed.traces.record import U32, Records, Row, TraceError, excerpt, records_from
from testbed.traces.rows import Columns

SEPARATORS = ",;\t|"


class Table:
    name = "csv"

    def __init__(self, told: dict[str, Field] | None = None) -> None:
        self._told = told or {}
        self._separator = ","
        self._columns: list[str] = []
        self._mapping = Mapping({})

    @property
    def work_unit(self) -> str:
        return self._mapping.work_unit

    def recognizes(self, line: bytes) -> bool:
        """Is this a header in which there is a time?"""
        try:
            return self.takes_header(line)
        except TraceError:
            return False

    def takes_header(self, line: bytes) -> bool:
        text = line.decode("utf-8", "replace")
        self._separator = max(SEPARATORS, key=text.count)
        try:
            self._columns = [name.strip() for name in self._split(text)]
        except ValueError as error:
            raise TraceError(f"no header of a table: {error}") from None
        mapping = mapping_for(self._columns, self._told)
        if mapping is None:
            raise TraceError(
                f"the first line names no column of times: {excerpt(line)}: say which, with --column t=NAME:UNIT"
            )
        self._mapping = mapping
        return True

    def _split(self, line: str) -> list[str]:
        """Split one line into cells; ValueError when it is none."""
        if '"' not in line:
            return line.split(self._separator)
        try:
            rows = list(csv.reader([line], delimiter=self._separator, strict=True))
        except csv.Error as error:
            raise ValueError(f"quotes: {error}") from None
        return rows[0] if rows else []

    def parse_row(self, line: bytes) -> Row:
        # Latin-1 maps every byte to a character and back, whatever the encoding is.
        cells = self._split(line.decode("latin-1"))
        if len(cells) != len(self._columns):
            raise ValueError(f"expected {len(self._columns)} columns, not {len(cells)}")
        return self._mapping.row(dict(zip(self._columns, (cell.encode("latin-1") for cell in cells), strict=True)))

    @property
    def key_column(self) -> str:
        """The column that is the key; empty: none is."""
        key = self._mapping.fields.get("key")
        return key.column if key else ""

    def key_text(self, line: bytes) -> bytes:
        """Return the key of this row as it was written."""
        return self._split(line.decode("latin-1"))[self._last(self.key_column)].encode("latin-1")

    def parse_many(self, text: Text, start: Offsets, end: Offsets) -> tuple[Records, Mask]:
        columns = Columns(text, start, end, ord(self._separator), len(self._columns))
        fields = self._mapping.fields
        at = {name: columns[self._last(field.column)] for name, field in fields.items()}
        t_ns, ok = scaled(text, *at["t"], DIGITS[fields["t"].unit])
        records = records_from(t_ns)
        ok &= columns.ok
        if len(text.find(ord('"'))) > 2:
            ok &= text.next(ord('"'), start, end) == end
        if "work" in at:
            work, work_ok = real(text, *at["work"])
            empty = at["work"][0] == at["work"][1]
            work[empty] = np.nan
            records["work"] = work / DIVISOR[fields["work"].unit]
            ok &= work_ok | empty
        for name in ("bytes", "balancer"):
            if name in at:
                value, value_ok = unsigned(text, *at[name])
                empty = at[name][0] == at[name][1]
                value[empty] = 0
                records[name] = value
                ok &= value_ok | empty
                if name == "balancer":
                    ok &= value <= U32
        if "key" in at:
            key, is_number = unsigned(text, *at["key"])
            words = np.flatnonzero(~is_number & (at["key"][1] > at["key"][0]))
            key[~is_number] = 0
            if len(words):
                key[words] = hashed(text, at["key"][0][words], at["key"][1][words])
            records["key"] = key
        return records, ok

    def _last(self, column: str) -> int:
        """Of two columns of one name the last counts, as in a dict."""
        return len(self._columns) - 1 - self._columns[::-1].index(column)
