"""The tamper-evident ledger of auction events: an append-only hash chain of JSON lines (ledger_format.py says how).

    with Ledger("auction.jsonl") as ledger:
        ledger.append("round", round=1, reserve=140.2)
    verify("auction.jsonl").ok

One writer at a time (flock on the head file); a file that is there is continued after its end was checked. What a crash
left half written is cut off and put on record (kind `repair`). A live balancer is never disturbed: with `lossy`,
records that cannot be written (disk full) are dropped and counted, and a record of kind `dropped` says how many once it
goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from controlplane.auction.ledger_format import (
    FORMAT,
    GENESIS,
    HEAD_BYTES,
    RESERVED,
    VERSION,
    DamagedError,
    Head,
    LedgerError,
    Record,
    read_record,
    seal,
)
from controlplane.auction.ledger_verify import Verdict, head_path, number_of, rotated, verify

__all__ = ["GENESIS", "Ledger", "LedgerError", "Record", "Verdict", "records", "verify"]

log = logging.getLogger("vickrey.ledger")

# Lines are handed to the kernel when so much has gathered, or on flush().
BUFFER_BYTES = 1 << 16
# A line longer than this is refused: the end of a file can be found without reading all of it.
LINE_BYTES_MAX = 1 << 20
# Shortest file that is worth rotating.
ROTATE_LEAST = 4096


class Ledger:
    """A ledger open for appending; with path None it takes records and keeps nothing.

    clock: seconds for each record's `time` (a record may give its own). max_bytes: rotate when the file grows beyond
    it, and keep that many older files (None: all). lossy: never raise once open, drop and count instead. set_aside: a
    file that was tampered with is renamed to FILE.damaged-N and a new chain begun, instead of LedgerError. durable:
    wait for the disk at every flush.
    """

    def __init__(
        self,
        path: str | Path | None,
        *,
        clock: Callable[[], float] = time.time,
        max_bytes: int | None = None,
        keep: int | None = 4,
        lossy: bool = False,
        set_aside: bool = False,
        durable: bool = False,
    ) -> None:
        if max_bytes is not None and max_bytes < ROTATE_LEAST:
            raise ValueError(f"expected max_bytes of {ROTATE_LEAST} or more, not {max_bytes}")
        if keep is not None and keep < 0:
            raise ValueError(f"expected keep of 0 or more, not {keep}")
        self.path = None if path is None else Path(path)
        self.records, self.hash = 0, GENESIS  # of the chain, those not yet flushed included
        self.dropped = 0  # records lost to errors of the disk since it was opened
        self.error = ""  # the last such error
        self._clock, self._max_bytes, self._keep, self._lossy, self._durable = clock, max_bytes, keep, lossy, durable
        self._encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain).encode
        self._lines: list[bytes] = []
        self._waiting = 0  # bytes of them
        self._size = 0  # bytes of the file that are good
        self._sealed = (0, GENESIS)  # records and hash up to there
        self._unreported = 0  # dropped, and not yet on record
        self._reporting = False  # a record that says so waits
        self._own = 0  # how many of the records that wait are the ledger's own
        self._older: list[str] = []  # names of the files before this one that belong to the chain
        self._file = self._head = -1
        if self.path is not None:
            try:
                self._open(self.path, set_aside)
            except BaseException:
                self._release()
                raise

    # --- appending ----------------------------------------------------------------------------------------------------

    def append(self, kind: str, /, **fields: Any) -> int:
        """Append a record and return its index (-1: dropped). What JSON has no number for (NaN, inf) becomes null.

        ValueError: a field has a name of the chain's own, or cannot be written as JSON, or is very long.
        """
        if self.path is None:
            self.records += 1
            return self.records - 1
        if self._file < 0:
            raise LedgerError(f"{self.path}: the ledger is closed")
        if not RESERVED.isdisjoint(fields):
            raise ValueError(f"a ledger's record cannot have fields called {', '.join(sorted(RESERVED & set(fields)))}")
        self._preface()
        try:
            index = self._add(kind, fields)
        except ValueError as error:
            if not self._lossy:
                raise
            self.dropped, self._unreported, self.error = self.dropped + 1, self._unreported + 1, str(error)
            return -1
        if self._waiting >= BUFFER_BYTES:
            self.flush()
        return index

    def _preface(self) -> None:
        """Add what must stand before the next record: the first of a file, and how many were dropped."""
        if self._size == 0 and not self._lines:
            self._add_own("rotate", files=self._older)
        if self._unreported and not self._reporting:
            self._reporting = True
            self._add_own("dropped", records=self._unreported, why=self.error)

    def _add_own(self, kind: str, **fields: Any) -> None:
        self._add(kind, fields)
        self._own += 1

    def _add(self, kind: str, fields: dict[str, Any]) -> int:
        index = self.records
        fields["index"], fields["kind"], fields["previous"] = index, kind, self.hash
        if "time" not in fields:
            fields["time"] = self._clock()
        try:
            body = self._encode(fields).encode("ascii")
        except ValueError:
            try:
                body = self._encode(_finite(fields)).encode("ascii")
            except RecursionError:
                raise ValueError(f"record of kind {kind!r}: it refers to itself, or is nested too deep") from None
        except (TypeError, RecursionError) as error:
            raise ValueError(f"record of kind {kind!r}: {error}") from None
        if len(body) > LINE_BYTES_MAX:
            raise ValueError(f"record of kind {kind!r} has {len(body)} bytes, more than {LINE_BYTES_MAX}")
        line, self.hash = seal(body)
        self.records = index + 1
        self._lines.append(line)
        self._waiting += len(line)
        return index

    def flush(self) -> None:
        """Write what waits, and seal it. OSError: it could not be written (not with `lossy`: then it is dropped)."""
        if self.path is None or self._file < 0 or not self._lines:
            return
        try:
            self._write()
            if self._max_bytes is not None and self._size >= self._max_bytes:
                self._rotate()
        except OSError as error:
            self._drop(error)
            if not self._lossy:
                raise

    def close(self) -> None:
        """Write the closing record and give the file free. Records that were dropped are on record before it."""
        if self._file < 0:
            return
        try:
            self._preface()
            self._add_own("close")
            self.flush()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- writing ------------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        data = b"".join(self._lines)
        _write_at(self._file, data, self._size)
        if self._durable:
            os.fsync(self._file)
        os.pwrite(self._head, Head(self.records, self.hash, self._size + len(data)).render(), 0)
        self._size += len(data)
        self._lines, self._waiting, self._own = [], 0, 0
        self._sealed = self.records, self.hash
        if self._reporting:
            self._unreported, self._reporting = 0, False

    def _drop(self, error: OSError) -> None:
        """Go back to what is sealed: what could not be written leaves no gap in the chain, but is counted."""
        lost = self.records - self._sealed[0] - self._own
        if not self._unreported:
            log.warning("%s: %s: records are dropped until it can be written again", self.path, error.strerror or error)
        self.dropped += lost
        self._unreported += lost
        self._reporting = False
        self.error = error.strerror or str(error)
        self.records, self.hash = self._sealed
        self._lines, self._waiting, self._own = [], 0, 0
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._size)

    # --- opening ------------------------------------------------------------------------------------------------------

    def _open(self, path: Path, set_aside: bool) -> None:
        try:
            self._lock(path)
            aside = None
            try:
                cut = self._continue(path)
            except LedgerError as error:
                if not set_aside:
                    raise
                aside = _set_aside(path)
                log.warning("%s: set aside as %s, a new chain begins", error, aside)
                os.ftruncate(self._head, 0)
                cut = self._continue(path)
            self._begin(cut, aside)
        except OSError as error:
            raise LedgerError(f"{path}: {error.strerror or error}") from error

    def _lock(self, path: Path) -> None:
        self._head = os.open(head_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._head, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LedgerError(f"{path}: another process is writing this ledger") from None

    def _continue(self, path: Path) -> bytes:
        """Take up the chain where it was sealed, and what was written whole after that; return the rest, which is cut.

        LedgerError: what was sealed is not there any more.
        """
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._file).st_size
        self.records, self.hash, self._size, self._older = 0, GENESIS, 0, []
        sealed = os.pread(self._head, HEAD_BYTES + 1, 0)
        if sealed:
            try:
                head = Head.parse(sealed)
            except DamagedError as error:
                raise LedgerError(f"{head_path(path)}: {error}") from None
            self.records, self.hash, self._size = head.records, head.hash, head.end
            if not self._between_files(path, size):
                self._check_seal(path, head, size)
        elif size:
            # Its head file is gone: it can be continued when it is whole and was closed.
            verdict = verify(path)
            if not verdict.ok:
                raise LedgerError(f"{verdict}; it cannot be continued")
            last = read_record(self._line_before(size))
            self.records, self.hash, self._size = last.index + 1, last.hash, size
        if self._size:
            self._older = _files_before(path)
        cut = self._take_up(os.pread(self._file, size - self._size, self._size))
        os.ftruncate(self._file, self._size)
        self._sealed = self.records, self.hash
        return cut

    def _between_files(self, path: Path, size: int) -> bool:
        """Whether a writer was killed after it rotated the file before away and before it began this one."""
        if self.records == 0 or size >= self._size:
            return False
        older = rotated(path)
        if not older or _last_record_hash(older[-1]) != self.hash:
            return False
        self._size = 0
        self._older = [*_files_before(older[-1]), older[-1].name]
        return True

    def _check_seal(self, path: Path, head: Head, size: int) -> None:
        if size < head.end:
            raise LedgerError(f"{path}: it has {size} bytes, but {head.end} were sealed: it was cut")
        try:
            last = read_record(self._line_before(head.end))
        except DamagedError as error:
            raise LedgerError(f"{path}: record {head.records - 1}, the last that was sealed: {error}") from None
        if (last.index + 1, last.hash) != (head.records, head.hash):
            raise LedgerError(f"{path}: it does not end as it was sealed: record {last.index} stands at the end")

    def _line_before(self, end: int) -> bytes:
        start = max(end - LINE_BYTES_MAX - 1024, 0)
        tail = os.pread(self._file, end - start, start)
        return tail[tail.rfind(b"\n", 0, -1) + 1 :]

    def _take_up(self, data: bytes) -> bytes:
        """Adopt the whole records that were written after the seal; return what comes after them."""
        place = 0
        while (newline := data.find(b"\n", place)) >= 0:
            try:
                record = read_record(data[place : newline + 1])
            except DamagedError:
                break
            if (record.index, record.previous) != (self.records, self.hash):
                break
            self.records, self.hash = record.index + 1, record.hash
            self._size += newline + 1 - place
            place = newline + 1
        return data[place:]

    def _begin(self, cut: bytes, aside: str | None) -> None:
        """Write the session's first records, at once: a ledger without a head is never left behind."""
        if self._size == 0 and self.records:
            self._add_own("rotate", files=self._older)
        if cut:
            log.warning("%s: %d bytes after record %d cut: half written", self.path, len(cut), self.records - 1)
            self._add("repair", {"cut_bytes": len(cut), "cut_sha256": hashlib.sha256(cut).hexdigest()})
        fields: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        self._add("open", fields if aside is None else fields | {"set_aside": aside})
        self._write()

    def _release(self) -> None:
        for descriptor in (self._file, self._head):  # closing the head's gives the lock free
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._head = -1

    # --- rotation -----------------------------------------------------------------------------------------------------

    def _rotate(self) -> None:
        """Close this file under the next number and begin another that chains on to it."""
        assert self.path is not None
        self._add_own("close")
        self._write()
        older = rotated(self.path)
        target = self.path.with_name(f"{self.path.name}.{1 + (number_of(self.path, older[-1]) if older else 0)}")
        os.rename(self.path, target)
        try:
            begun = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError:
            os.rename(target, self.path)
            raise
        os.close(self._file)
        self._file, self._size = begun, 0
        names = [*self._older, target.name]
        self._older = names if self._keep is None else names[len(names) - min(self._keep, len(names)) :]
        self._preface()
        self._write()
        for name in names[: len(names) - len(self._older)]:
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(name).unlink()


def records(path: str | Path) -> Iterator[Record]:
    """Yield the records of one file, each checked by itself; LedgerError names the first that is damaged."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield read_record(line)
                except DamagedError as error:
                    raise LedgerError(f"{path}:{number}: {error}") from None
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror or error}") from error


def _write_at(descriptor: int, data: bytes, place: int) -> None:
    """Write all of it at this place."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, place)
        view, place = view[written:], place + written


def _plain(value: Any) -> Any:
    """Return numpy's scalars and arrays, and paths, as JSON takes them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _finite(value: Any) -> Any:
    """Return the value with None for every number that JSON does not have."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _files_before(path: Path) -> list[str]:
    """Return the names that a file's first record gives the files before it."""
    first = next(records(path), None)
    files = first.fields.get("files") if first is not None and first.kind == "rotate" else None
    return [name for name in files if isinstance(name, str) and name == Path(name).name] if files else []


def _last_record_hash(file: Path) -> str:
    """Return the hash that a file's last line states, of a file that this program closed."""
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(size - LINE_BYTES_MAX - 1024, 0))
        lines = opened.read().splitlines(keepends=True)
    try:
        return read_record(lines[-1]).hash if lines else ""
    except DamagedError:
        return ""


def _set_aside(path: Path) -> str:
    """Rename a damaged ledger; return its new name."""
    number = 1
    while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    os.rename(path, target)
    return target.name
