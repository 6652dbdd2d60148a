"""The canonical record of a trace, the count of bad rows, and the one error of this package.

    t_ns      arrival, nanoseconds; the epoch is the file's, and it may be negative
    work      what the flow asks for, in the trace's unit (`TraceFile.work_unit`: "s" is seconds on a server of speed 1,
              "n" turns of the CPU loop of MARLLB's page); NaN where the file says nothing
    bytes     size of the answer; 0 where the file says nothing
    key       64 bits that tell clients, pages or functions apart, whichever the file names
    balancer  the balancer that it arrived at

Its bytes are little-endian and packed, so that a checksum over them means the same everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

RECORD = np.dtype([("t_ns", "<i8"), ("work", "<f8"), ("bytes", "<u8"), ("key", "<u8"), ("balancer", "<u4")])
FIELDS = ("t_ns", "work", "bytes", "key", "balancer")

Records: TypeAlias = NDArray[Any]  # of RECORD
Row: TypeAlias = "tuple[int, float, int, int, int]"  # one of them

# Times beyond are refused: 146 years, what the simulator's clock takes.
T_NS_LIMIT = 2**62
WORK_LIMIT = 1e18
U64 = 2**64 - 1
U32 = 2**32 - 1

BAD_SHOWN = 10
# So many bad rows and no good one: the file is of another kind.
PATIENCE = 100
EXCERPT = 60


class TraceError(Exception):
    """A trace that cannot be read or made, in words for its user."""


def excerpt(text: bytes) -> str:
    """Return the beginning of a line, fit for a terminal."""
    shown = "".join(c if c.isprintable() else "." for c in text[:EXCERPT].decode("utf-8", "replace").replace("\t", " "))
    return shown + ("…" if len(text) > EXCERPT else "")


@dataclass(frozen=True, slots=True, order=True)
class Bad:
    """A row that could not be used."""

    line: int  # from 1
    reason: str
    text: str


@dataclass
class Problems:
    """Counts what was read and what was not, and keeps the first bad rows. strict: the first one is an error."""

    name: str
    strict: bool = False
    good: int = 0
    bad: int = 0
    first: list[Bad] = field(default_factory=list)

    def add(self, line: int, reason: str, text: bytes = b"") -> None:
        if self.strict:
            raise TraceError(f"{self.name}:{line}: {reason}" + (f": {excerpt(text)}" if text else ""))
        self.bad += 1
        if len(self.first) < BAD_SHOWN or line < self.first[-1].line:
            # In order of line: what is found later (a row out of order) may stand before.
            self.first = sorted([*self.first, Bad(line, reason, excerpt(text))])[:BAD_SHOWN]

    def as_json(self) -> dict[str, Any]:
        shown = [{"line": bad.line, "reason": bad.reason, "text": bad.text} for bad in self.first]
        return {"count": self.bad, "first": shown}

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.bad:,} bad {'row' if self.bad == 1 else 'rows'} left out"]
        lines += [f"  line {bad.line}: {bad.reason}" + (f": {bad.text}" if bad.text else "") for bad in self.first]
        if self.bad > len(self.first):
            lines.append(f"  … and {self.bad - len(self.first):,} more")
        return "\n".join(lines)


def empty() -> Records:
    return np.empty(0, dtype=RECORD)


def records_from(
    t_ns: Any, work: Any = np.nan, size: Any = 0, key: Any = 0, balancer: Any = 0, *, n: int | None = None
) -> Records:
    """Return records of these columns; what is a single value is every row's."""
    records = np.empty(len(t_ns) if n is None else n, dtype=RECORD)
    for name, values in zip(FIELDS, (t_ns, work, size, key, balancer), strict=True):
        records[name] = values
    return records


def join(blocks: Iterable[Records]) -> Records:
    """Return all blocks as one array."""
    return np.concatenate([empty(), *blocks])


def canonical_bytes(records: Records) -> bytes:
    return records.astype(RECORD, copy=False).tobytes()


def checksum(blocks: Iterable[Records]) -> str:
    """Return the SHA-256 of the canonical bytes."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(canonical_bytes(block))
    return digest.hexdigest()
