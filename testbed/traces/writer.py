"""Traces into files: CSV, JSON Lines or NumPy, compressed when the name ends in .gz.

A file appears when it is complete: until then it has another name.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import BinaryIO

from testbed.traces.binary import header
from testbed.traces.lines import STDIN
from testbed.traces.record import FIELDS, Records, TraceError, canonical_bytes

WRITTEN = ("csv", "jsonl", "npy")
_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npy": "npy"}
_ROWS = 1 << 14


def format_of(path: str, told: str | None = None) -> str:
    """Return the format that a name asks for, unless one is told; TraceError when it cannot be written there."""
    suffix = os.path.splitext(path.removesuffix(".gz"))[1]
    form = told or ("csv" if path == STDIN else _SUFFIXES.get(suffix))
    if form is None:
        raise TraceError(f"{path}: end the name in {', '.join(_SUFFIXES)} (and .gz), or say which with --output-format")
    if form not in WRITTEN:
        raise TraceError(f"no format to write is called '{form}': there are {', '.join(WRITTEN)}")
    if form == "npy" and (path == STDIN or path.endswith(".gz")):
        raise TraceError("a NumPy file has its length at the beginning: neither standard output nor .gz can be one")
    return form


class Writer:
    """Writes one trace: `with Writer("out.csv") as w: w.write(records)`. "-" is standard output."""

    def __init__(self, path: str | os.PathLike[str], form: str | None = None) -> None:
        self.path = os.fspath(path)
        self.format = format_of(self.path, form)
        self.rows = 0
        self._digest = hashlib.sha256()
        self._part = f"{self.path}.part{os.getpid()}"
        self._gzip: gzip.GzipFile | None = None
        try:
            self._file: BinaryIO = sys.stdout.buffer if self.path == STDIN else open(self._part, "wb")  # noqa: SIM115
        except OSError as error:
            raise TraceError(f"{self.path}: {error.strerror}") from None
        if self.path.endswith(".gz"):
            # Without name and time in it the same trace is the same file.
            self._gzip = gzip.GzipFile("", "wb", compresslevel=6, fileobj=self._file, mtime=0)
        begin = {"csv": (",".join(FIELDS) + "\n").encode(), "npy": header(0), "jsonl": b""}[self.format]
        self._put(begin)

    @property
    def checksum(self) -> str:
        """SHA-256 of the canonical bytes written so far."""
        return self._digest.hexdigest()

    def write(self, records: Records) -> None:
        canonical = canonical_bytes(records)
        self._digest.update(canonical)
        self.rows += len(records)
        if self.format == "npy":
            self._put(canonical)
            return
        as_text = _csv if self.format == "csv" else _jsonl
        for at in range(0, len(records), _ROWS):
            self._put(as_text(records[at : at + _ROWS]))

    def write_all(self, blocks: Iterable[Records]) -> None:
        for block in blocks:
            self.write(block)

    def _put(self, data: bytes) -> None:
        try:
            (self._gzip or self._file).write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise TraceError(f"{self.path}: {error.strerror}") from None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.path == STDIN:
            if kind is None:
                self._file.flush()
            return
        try:
            if self._gzip:
                self._gzip.close()
            if kind is None and self.format == "npy":
                self._file.seek(0)
                self._file.write(header(self.rows))
            self._file.close()
            if kind is None:
                os.replace(self._part, self.path)
        except OSError as failed:
            raise TraceError(f"{self.path}: {failed.strerror}") from None
        finally:
            if os.path.exists(self._part):
                os.unlink(self._part)


def _csv(records: Records) -> bytes:
    t, work, size, key, balancer = (records[name].tolist() for name in FIELDS)
    # repr is the shortest text that reads back as the same number; NaN is an empty cell.
    texts = ["" if w != w else repr(w) for w in work]
    return "".join(
        [f"{a},{b},{c},{d},{e}\n" for a, b, c, d, e in zip(t, texts, size, key, balancer, strict=True)]
    ).encode()


def _jsonl(records: Records) -> bytes:
    t, work, size, key, balancer = (records[name].tolist() for name in FIELDS)
    texts = ["null" if w != w else repr(w) for w in work]
    return "".join(
        [
            f'{{"t_ns": {a}, "work": {b}, "bytes": {c}, "key": {d}, "balancer": {e}}}\n'
            for a, b, c, d, e in zip(t, texts, size, key, balancer, strict=True)
        ]
    ).encode()
