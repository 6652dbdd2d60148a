"""Checks a ledger: finds the first record that was altered, removed, moved or inserted, a cut at the end, and says why.

What can be told: every change to a chain that was sealed. What cannot: a chain that was written anew from some record
on, head file and all. Who wants to be sure of that keeps a hash elsewhere and gives it as `anchor`.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from controlplane.auction.ledger_format import GENESIS, DamagedError, Head, LedgerError, Record, read_record

# A writer at work may rotate while the files are opened: try again so often so long apart, before
# believing what was found.
TRIES, WAIT = 20, 0.01


@dataclass(frozen=True)
class Verdict:
    """What verification found. Of a sound ledger, index and line are None and why is empty.

    unconfirmed: not ok, yet nothing is wrong with what is there: the anchor may stand in what was rotated away.
    """

    ok: bool
    records: int  # whole records read and found good before the first fault, in all files
    head: str = ""  # hash of the last good record
    index: int | None = None  # of the first record that is altered, removed, moved or inserted
    file: str = ""
    line: int | None = None  # in that file, from 1
    why: str = ""
    notes: tuple[str, ...] = ()
    kinds: dict[str, int] = field(default_factory=dict)  # good records by kind
    unconfirmed: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.ok:
            return f"{self.records} records, unbroken up to {self.head}"
        return f"{self.file}:{self.line}: {self.why}" if self.line else f"{self.file}: {self.why}"


class _Fault(Exception):
    """The first thing wrong: of which record, in which line, why."""

    def __init__(self, index: int, line: int, why: str) -> None:
        self.index, self.line, self.why = index, line, why


def verify(path: str | Path, anchor: str | None = None) -> Verdict:
    """Verify a ledger, with the files that it rotated; anchor: a hash, noted earlier, that must be in the chain, or be
    that of the last record that was rotated away.

    LedgerError: the file cannot be read.
    """
    path = Path(path)
    before = _state(path)
    for _ in range(TRIES):
        found: Verdict | LedgerError
        with contextlib.ExitStack() as stack:
            try:
                found = _Walk(_present(path, before[0]), before[0], anchor, stack).verdict()
            except LedgerError as error:
                found = error
        if isinstance(found, Verdict) and found.ok:
            break
        time.sleep(WAIT)
        now = _state(path)
        if now == before:
            break
        before = now
    if isinstance(found, LedgerError):
        raise found
    return found


def _state(path: Path) -> tuple[bytes | None, tuple[int, int] | None]:
    """Return what a writer at work moves: the head, and the file's identity and size."""
    try:
        stat = path.stat()
    except OSError:
        return _head_bytes(path), None
    return _head_bytes(path), (stat.st_ino, stat.st_size)


def _present(path: Path, head: bytes | None) -> Path:
    """Return the file that the head speaks of: while nothing stands in a new one, that is the one rotated last."""
    try:
        with path.open("rb") as file:
            begun = file.readline().endswith(b"\n")
    except FileNotFoundError:
        begun = False
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror or error}") from error
    older = rotated(path) if head is not None and not begun else []
    return older[-1] if older else path


def rotated(path: Path) -> list[Path]:
    """Return the files rotated away from this one, oldest first."""
    pattern = re.compile(re.escape(path.name) + r"\.[1-9][0-9]*")
    found = [file for file in path.parent.iterdir() if pattern.fullmatch(file.name)]
    return sorted(found, key=lambda file: number_of(path, file))


def number_of(path: Path, file: Path) -> int:
    """Return the number under which a file was rotated away from path."""
    return int(file.name[len(path.name) + 1 :])


def head_path(path: Path) -> Path:
    """Return where a ledger's head stands."""
    return path.with_name(path.name + ".head")


def _head_bytes(path: Path) -> bytes | None:
    try:
        return head_path(path).read_bytes() or None  # empty: made, and nothing sealed yet
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(f"{head_path(path)}: {error.strerror or error}") from error


class _Walk:
    """One pass over the files of a chain, oldest first. All are open before the first is read, and stay what they
    were then, whatever a writer renames or removes meanwhile."""

    def __init__(self, path: Path, head: bytes | None, anchor: str | None, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._open: dict[Path, BinaryIO] = {}
        self.path, self.head_bytes = path, head
        self.anchor = None if anchor is None else anchor.lower()
        self.records = 0
        self.first = 0  # index of the first record that is still there
        self.next: int | None = None  # index that comes next; None before the first record
        self.hash = GENESIS
        self.last: Record | None = None
        self.at_head: tuple[str, int] | None = None  # hash and end of the record that the head names
        self.partial = 0  # bytes of a last line without its newline
        self.anchored = anchor is None
        self.notes: list[str] = []
        self.kinds: dict[str, int] = {}
        self.file = path

    def verdict(self) -> Verdict:
        try:
            head = self._head()
            for file in [*self._older(), self.path]:
                self.file = file
                self._read(file, head)
            self._judge_end(head)
            if not self.anchored and self.first == 0:
                raise _Fault(
                    self.next or 0,
                    0,
                    f"no record has the hash {self.anchor}: the chain was written anew, or it ends before that record, "
                    "which a later file may have",
                )
        except _Fault as fault:
            return Verdict(
                False, self.records, self.hash, fault.index, str(self.file), fault.line or None, fault.why,
                tuple(self.notes), self.kinds,
            )  # fmt: skip
        notes = tuple(self.notes)
        if not self.anchored:
            why = (
                f"no record from {self.first} on has the hash {self.anchor}: it can no longer be checked, as it may be "
                f"that of one of records 0 to {self.first - 1}, which were rotated away"
            )
            return Verdict(
                False, self.records, self.hash, file=str(self.path), why=why, notes=notes, kinds=self.kinds,
                unconfirmed=True,
            )  # fmt: skip
        return Verdict(True, self.records, self.hash, notes=notes, kinds=self.kinds)

    def _lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Yield line numbers and lines; the last may lack its newline."""
        try:
            if path not in self._open:
                self._open[path] = self._stack.enter_context(path.open("rb"))
            self._open[path].seek(0)
            yield from enumerate(self._open[path], 1)
        except OSError as error:
            raise LedgerError(f"{path}: {error.strerror or error}") from error

    def _head(self) -> Head | None:
        if self.head_bytes is None:
            return None
        try:
            return Head.parse(self.head_bytes)
        except DamagedError:
            self.file = head_path(self.path)
            raise _Fault(0, 0, "the head file was altered: it is not a ledger's head") from None

    def _older(self) -> list[Path]:
        """Return the files that the ledger names as its earlier parts."""
        _, line = next(self._lines(self.path), (0, b""))
        try:
            first = read_record(line)
        except DamagedError:
            return []
        if first.kind != "rotate":
            return []
        names = first.fields.get("files")
        if not isinstance(names, list) or not all(isinstance(n, str) and n == Path(n).name for n in names):
            raise _Fault(first.index, 1, "its first record does not name the earlier files")
        older = [self.path.with_name(name) for name in names]
        if self.head_bytes is None:
            # An older part by itself: those before it may have been given up since.
            while older and not older[0].exists():
                self.notes.append(f"{older.pop(0).name}, an earlier part, is not there any more")
        for file in older:
            try:
                self._open[file] = self._stack.enter_context(file.open("rb"))
            except FileNotFoundError:
                raise _Fault(0, 0, f"{file.name}, an earlier part of the ledger, is missing") from None
            except OSError as error:
                raise LedgerError(f"{file}: {error.strerror or error}") from error
        return older

    def _read(self, file: Path, head: Head | None) -> None:
        end = 0
        for number, line in self._lines(file):
            if not line.endswith(b"\n"):
                if file != self.path:
                    raise _Fault(self.next or 0, number, "the line was cut")
                self.partial = len(line)
                return
            end += len(line)
            record = self._accept(file, number, line, head)
            if head is None or file != self.path:
                continue
            if record.index + 1 == head.records:
                self.at_head = record.hash, end
            elif (
                number == 1 and record.kind == "rotate" and (record.index, record.previous) == (head.records, head.hash)
            ):
                # Killed between rotating and sealing: the head still speaks of the file before.
                self.at_head = head.hash, head.end

    def _accept(self, file: Path, number: int, line: bytes, head: Head | None) -> Record:
        """Check one line against the chain and move on."""
        expected = 0 if self.next is None else self.next
        try:
            record = read_record(line)
        except DamagedError as error:
            raise _Fault(expected, number, f"record {expected} was altered: {error}") from None
        if self.next is None and record.kind == "rotate":
            # Older parts were given up; the chain is followed from here.
            expected = self.next = self.first = record.index
            self.hash = record.previous
            self.anchored = self.anchored or record.previous == self.anchor
            if expected:
                self.notes.append(f"records 0 to {expected - 1} were rotated away")
        if record.index != expected:
            raise _Fault(expected, number, self._misplaced(file, number, record.index, expected))
        if record.previous != self.hash:
            blamed = self._blamed(file, number, record, head)
            raise _Fault(
                blamed,
                number if blamed == expected else max(number - 1, 1),
                f"record {blamed} was altered and given a new hash: record {expected} does not follow from the one "
                "before it",
            )
        if expected == 0 and record.kind != "open":
            raise _Fault(0, number, "the first record is not of kind open")
        self.next, self.hash, self.last = expected + 1, record.hash, record
        self.records += 1
        self.kinds[record.kind] = self.kinds.get(record.kind, 0) + 1
        self.anchored = self.anchored or record.hash == self.anchor
        return record

    def _blamed(self, file: Path, number: int, record: Record, head: Head | None) -> int:
        """Return which of two records that do not follow was altered: not the one that what comes after vouches for."""
        if number == 1:
            return record.index
        for later, line in self._lines(file):
            if later == number + 1:
                try:
                    vouched = read_record(line).previous == record.hash
                except DamagedError:
                    vouched = False
                return record.index - 1 if vouched else record.index
        vouched = head is not None and head.records == record.index + 1 and head.hash == record.hash
        return record.index - 1 if vouched else record.index

    def _judge_end(self, head: Head | None) -> None:
        """Check that nothing is missing at the end."""
        found = self.next or 0
        if head is None:
            if self.partial or self.last is None or self.last.kind != "close":
                ends = "in a half-written line" if self.partial else "without a closing record"
                raise _Fault(found, 0, f"cut after {found} records: it ends {ends}, and there is no head file")
            lacks = "there is no head file" if not head_path(self.path).exists() else "the head file is empty"
            self.notes.append(f"{lacks}: sessions removed as a whole at the end would not be seen")
            return
        if found < head.records:
            raise _Fault(found, 0, f"cut at the end: {found} records, but the head counted {head.records}")
        if self.at_head != (head.hash, head.end):
            why = "the head file names another hash or place for it: the end was written anew, or the head altered"
            raise _Fault(max(head.records - 1, 0), 0, f"record {head.records - 1} is not what was sealed: {why}")
        if found > head.records:
            self.notes.append(f"{found - head.records} records after the seal: a writer is at work, or was killed")
        if self.partial:
            self.notes.append(f"a half-written last line of {self.partial} bytes: a writer is at work, or was killed")

    def _misplaced(self, file: Path, number: int, found: int, expected: int) -> str:
        """Say what became of the expected record when another stands in its place."""
        if found < expected:
            return f"record {found} stands where record {expected} is expected: it was inserted or repeated"
        for later, line in self._lines(file):
            if later > number:
                try:
                    if read_record(line).index == expected:
                        return f"record {expected} was moved: record {found} stands in its place"
                except DamagedError:
                    continue
        which = f"record {expected} was" if found == expected + 1 else f"records {expected} to {found - 1} were"
        return f"{which} removed: record {found} stands in its place"
