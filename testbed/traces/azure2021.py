"""Azure Functions 2021: `app,func,end_timestamp,duration`, one invocation a line, seconds.

    734272c0…751d8,313c03f5…5beaad,5160.142570018768,0.134

It arrived at end_timestamp - duration, and duration is its work; the key tells functions apart. Source: Zhang et al.,
"Faster and Cheaper Serverless Computing on Harvested Resources", SOSP 2021; AzurePublicDataset, CC-BY.
"""

from __future__ import annotations

from testbed.traces.digits import Mask, Offsets, Text, hashed, hashed_one, real, real_one, scaled, scaled_one
from testbed.traces.record import Records, Row, records_from
from testbed.traces.rows import Columns, field_error

HEADER = b"app,func,end_timestamp,duration"


class Azure2021:
    name = "azure2021"
    work_unit = "s"

    def takes_header(self, line: bytes) -> bool:
        return line == HEADER

    def parse_row(self, line: bytes) -> Row:
        fields = line.split(b",")
        if len(fields) != 4:
            raise ValueError(f"expected four columns ({HEADER.decode()}), not {len(fields)}")
        app, function, end, duration = fields
        if not app or not function:
            raise ValueError("app and func must be there")
        try:
            end_ns = scaled_one(end, 9)
        except ValueError as error:
            raise field_error("end_timestamp", error) from None
        try:
            duration_ns, work = scaled_one(duration, 9), real_one(duration)
        except ValueError as error:
            raise field_error("duration", error) from None
        return end_ns - duration_ns, work, 0, hashed_one(function, hashed_one(app)), 0

    def parse_many(self, text: Text, start: Offsets, end: Offsets) -> tuple[Records, Mask]:
        columns = Columns(text, start, end, ord(","), 4)
        app, function = columns[0], columns[1]
        end_ns, end_ok = scaled(text, *columns[2], 9)
        duration_ns, duration_ok = scaled(text, *columns[3], 9)
        work, work_ok = real(text, *columns[3])
        named = (app[1] > app[0]) & (function[1] > function[0])
        key = hashed(text, *function, chain=hashed(text, *app))
        records = records_from(end_ns - duration_ns, work, key=key)
        return records, columns.ok & named & end_ok & duration_ok & work_ok
