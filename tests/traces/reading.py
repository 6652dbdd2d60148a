"""What the tests of the readers share."""

from pathlib import Path

from testbed.traces.digits import Mask, Offsets, Text
from testbed.traces.reader import Options, TraceFile
from testbed.traces.record import Records, Row
from testbed.traces.rows import RowFormat

DATA = Path(__file__).parent / "data"
MARLLB = (DATA / "marllb_rate_150.csv").read_bytes()


def read_bytes(folder: Path, data: bytes, **options) -> tuple[Records, TraceFile]:
    """Write and read a file."""
    path = folder / "trace"
    path.write_bytes(data)
    trace = TraceFile(path, Options(**options))
    return trace.records(), trace


class OneByOne:
    """A format that reads each line by itself: the definition, without the fast path."""

    def __init__(self, form: RowFormat) -> None:
        self._form = form
        self.name = form.name

    @property
    def work_unit(self) -> str:
        return self._form.work_unit

    def takes_header(self, line: bytes) -> bool:
        return self._form.takes_header(line)

    def parse_row(self, line: bytes) -> Row:
        return self._form.parse_row(line)

    def parse_many(self, text: Text, start: Offsets, end: Offsets) -> tuple[Records, Mask]:
        records, ok = self._form.parse_many(text, start, end)
        records["work"], ok[:] = 0, False
        return records, ok
