"""WikiBench's traces of Wikipedia: `id timestamp url flag`, separated by spaces.

    929840853 1190146243.326 http://upload.wikimedia.org/wikipedia/en/thumb/e/e1/Logo.png/100px-Logo.png -
    154132716 2010-05-27T09:31:55.63 http://en.m.wikipedia.org/wiki/Judge_Me_Tender -

The timestamp is seconds since 1970, or (2009 and later) a date in UTC. The flag says whether the request saved a page.
There is no work and no size in it. Source: Urdaneta, Pierre, van Steen, "Wikipedia Workload Analysis for Decentralized
Hosting", Computer Networks 53(11), 2009; http://www.wikibench.eu.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from testbed.traces.digits import Mask, Offsets, Text, hashed, hashed_one, scaled, scaled_one, unsigned, unsigned_one
from testbed.traces.record import Records, Row, records_from
from testbed.traces.rows import Columns, field_error

_DATE = re.compile(rb"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(\.\d{1,12})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE_TEXT = 16  # 2010-05-27T09:31, the same for very many lines in a row


class WikiBench:
    name = "wikibench"
    work_unit = ""

    def takes_header(self, line: bytes) -> bool:
        return False

    def parse_row(self, line: bytes) -> Row:
        fields = line.split(b" ")
        if len(fields) < 4:
            raise ValueError("expected four columns: id, timestamp, url and flag")
        number, time, url = fields[0], fields[1], b" ".join(fields[2:-1])
        for name, parse, value in (("id", unsigned_one, number), ("timestamp", _time, time)):
            try:
                t_ns = parse(value)
            except ValueError as error:
                raise field_error(name, error) from None
        if not url:
            raise ValueError("url is empty")
        return t_ns, float("nan"), 0, hashed_one(url), 0

    def key_text(self, line: bytes) -> bytes:
        """Return what the key of this row is a hash of: the URL."""
        return b" ".join(line.split(b" ")[2:-1])

    def parse_many(self, text: Text, start: Offsets, end: Offsets) -> tuple[Records, Mask]:
        columns = Columns(text, start, end, ord(" "), 4)
        _, id_ok = unsigned(text, *columns[0])
        time, time_end = columns[1]
        is_date = (time_end - time > _MINUTE_TEXT) & (text.bytes[time + 4] == ord("-"))
        t_ns, time_ok = scaled(text, time, time_end, 9)
        if is_date.any():
            dates = np.flatnonzero(is_date)
            t_ns[dates], time_ok[dates] = _times(text, time[dates], time_end[dates])
        url, url_end = columns[2]
        records = records_from(t_ns, key=hashed(text, url, url_end))
        return records, columns.ok & id_ok & time_ok & (url_end > url)


def _time(field: bytes) -> int:
    match = _DATE.fullmatch(field)
    if match is None:
        return scaled_one(field, 9)
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        since = datetime(year, month, day, hour, minute, second, tzinfo=UTC) - _EPOCH
    except ValueError:
        raise ValueError("is no date") from None
    return (since.days * 86400 + since.seconds) * 10**9 + (scaled_one(match[7], 9) if match[7] else 0)


def _times(text: Text, start: Offsets, end: Offsets) -> tuple[NDArray[np.int64], Mask]:
    """Read dates: the minute once for each that occurs, the seconds all at once."""
    second = np.minimum(start + _MINUTE_TEXT + 1, end)
    seconds, ok = scaled(text, second, end, 9)
    whole_end = np.minimum(second + 2, end)
    whole, whole_ok = unsigned(text, second, whole_end)
    after = text.bytes[whole_end]
    ok &= whole_ok & (whole < 60) & (whole_end - second == 2) & ((whole_end == end) | (after == ord(".")))
    ok &= (end - whole_end <= 13) & (text.bytes[start + _MINUTE_TEXT] == ord(":"))
    minutes = np.stack([text.words[start], text.words[start + 8]], axis=1)
    change = np.flatnonzero((minutes[1:] != minutes[:-1]).any(axis=1)) + 1
    t_ns = np.zeros(len(start), dtype=np.int64)
    for low, high in zip([0, *change.tolist()], [*change.tolist(), len(start)], strict=True):
        at = int(start[low])
        try:
            t_ns[low:high] = _time(text.slice(at, at + _MINUTE_TEXT) + b":00")
        except ValueError:
            ok[low:high] = False
    return t_ns + seconds, ok
