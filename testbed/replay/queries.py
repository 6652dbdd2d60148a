"""What the rows of a trace ask for, word for word: the records keep a hash of it, and here is the text back.

MARLLB's queries, WikiBench's URLs, and the column or member that is the key of a CSV or JSON Lines file. The file is
read once more; only texts that are asked for are kept, each once.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import quote, urlsplit

import numpy as np

from testbed.traces.columns import parse_columns
from testbed.traces.digits import Mask, Offsets, Text
from testbed.traces.jsonl import JsonLines
from testbed.traces.lines import Input
from testbed.traces.marllb import Marllb
from testbed.traces.reader import ROW_FORMATS, Options
from testbed.traces.record import Problems, Records, Row
from testbed.traces.rows import read_rows
from testbed.traces.table import Table
from testbed.traces.wikibench import WikiBench

# Formats whose rows say what was asked for.
HAVE_QUERIES = ("marllb", "wikibench")
MAY_HAVE_QUERIES = (*HAVE_QUERIES, "csv", "jsonl")  # in the column or member that is the key
_SAFE = "/%?&=+:;,@!$'()*~[]"


def texts(path: str, form: str, options: Options, keys: Collection[int]) -> dict[int, str]:
    """Return the text behind each of these keys that the file has one for. TraceError when it cannot be read."""
    inner = ROW_FORMATS[form](parse_columns(options.columns))
    assert isinstance(inner, Marllb | WikiBench | Table | JsonLines), f"{form} has no texts"
    listener = _Listener(inner, keys)
    with Input(path, options.chunk_bytes) as file:
        for _ in read_rows(file.pieces(), listener, Problems(file.name)):
            if listener.is_done:
                break
    return listener.found


class _Listener:
    """A row format that hears what the rows say, as another one reads them."""

    def __init__(self, inner: Marllb | WikiBench | Table | JsonLines, keys: Collection[int]) -> None:
        self.name = inner.name
        self.found: dict[int, str] = {}
        self._inner = inner
        self._missing = set(keys)

    @property
    def is_done(self) -> bool:
        return not self._missing

    @property
    def work_unit(self) -> str:
        return self._inner.work_unit

    def takes_header(self, line: bytes) -> bool:
        return self._inner.takes_header(line)

    def parse_row(self, line: bytes) -> Row:
        row = self._inner.parse_row(line)
        self._hear(row[3], line)
        return row

    def parse_many(self, text: Text, start: Offsets, end: Offsets) -> tuple[Records, Mask]:
        records, ok = self._inner.parse_many(text, start, end)
        keys, first = np.unique(records["key"], return_index=True)
        for key, i in zip(keys.tolist(), first.tolist(), strict=True):
            if ok[i] and key in self._missing:
                self._hear(key, text.slice(int(start[i]), int(end[i])))
        return records, ok

    def _hear(self, key: int, line: bytes) -> None:
        if key in self._missing:
            self.found[key] = self._inner.key_text(line).decode("utf-8", "surrogateescape")
            self._missing.discard(key)


def path_of(text: str) -> str:
    """Return what a request for this text asks for: path and query, with what may not stand there escaped.

    A URL loses its scheme and host: the target is another one.
    """
    if text.startswith(("http://", "https://", "//")):
        try:
            parts = urlsplit(text)
            text = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        except ValueError:  # brackets that are no address
            text = "/" + text.split("//", 1)[1].partition("/")[2]
    text = text.partition("#")[0]
    if not text.startswith("/"):
        text = "/" + text
    return quote(text, safe=_SAFE, errors="surrogateescape")
