"""MARLLB's traces: `time<TAB>query`, seconds and what is asked for.

    0.11515061509231506<TAB>/dummy.php/?n=5478122

`n=` is the work: turns of a loop in the page. A query without it (the Wikipedia traces of the same authors) has none.
Source: Yao et al., "Multi-Agent Reinforcement Learning for Network Load Balancing in Data Center", CIKM 2022, and the
repository ZhiyuanYaoJ/MARLLB.
"""

from __future__ import annotations

import re

import numpy as np

from testbed.traces.digits import Mask, Offsets, Text, hashed, hashed_one, real, real_one, scaled, scaled_one
from testbed.traces.record import Records, Row, records_from
from testbed.traces.rows import Columns, field_error

_WORK = re.compile(rb"[?&]n=([^&#]*)")


class Marllb:
    name = "marllb"
    work_unit = "n"

    def takes_header(self, line: bytes) -> bool:
        return line == b"time\tquery"

    def parse_row(self, line: bytes) -> Row:
        time, tab, query = line.partition(b"\t")
        if not tab:
            raise ValueError("no tab between time and query")
        if not query or b"\t" in query:
            raise ValueError("expected two columns, time and query")
        try:
            t_ns = scaled_one(time, 9)
        except ValueError as error:
            raise field_error("time", error) from None
        found = _WORK.search(query)
        try:
            work = real_one(found[1]) if found else float("nan")
        except ValueError as error:
            raise field_error("n", error) from None
        return t_ns, work, 0, hashed_one(query), 0

    def key_text(self, line: bytes) -> bytes:
        """Return what the key of this row is a hash of: the query."""
        return line.partition(b"\t")[2]

    def parse_many(self, text: Text, start: Offsets, end: Offsets) -> tuple[Records, Mask]:
        columns = Columns(text, start, end, ord("\t"), 2)
        t_ns, time_ok = scaled(text, *columns[0], 9)
        query, end = columns[1]
        equals = text.find(ord("="))[:-2]
        before = text.bytes[equals - 2]
        equals = equals[(text.bytes[equals - 1] == ord("n")) & ((before == ord("?")) | (before == ord("&")))]
        equals = np.append(equals, len(text.data))
        # An n= at the very beginning of the query would belong to the column before: it has no ? or & there.
        found = equals[np.searchsorted(equals, query + 2)]
        has_work = found < end
        value = np.where(has_work, found + 1, query)
        value_end = np.where(has_work, text.next(ord("&"), value, text.next(ord("#"), value, end)), query)
        work, work_ok = real(text, value, value_end)
        work[~has_work] = np.nan
        records = records_from(t_ns, work, key=hashed(text, query, end))
        return records, columns.ok & time_ok & (end > query) & (work_ok | ~has_work)
