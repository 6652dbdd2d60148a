"""What the tamper-evident ledger looks like on disk: a JSON record a line, each sealed with the hash of the one before.

A line is   {"index":7,"kind":"round","previous":"<64 hex>","time":12.5,…,"hash":"<64 hex>"}\\n

- Before `,"hash":"…"}` stands canonical JSON: keys sorted, no blanks, ASCII, no NaN.
- hash is the SHA-256 of the line's own bytes with `,"hash":"…"}\\n` replaced by `}`: a verifier in any language hashes
  bytes and need not write numbers as Python does. Parsing, dropping `hash` and writing canonical JSON gives the same.
- previous is the hash of the record before, sixty-four zeros for record 0; index counts up from 0 and never restarts.
- The first record of a chain is of kind `open`; the first of a file that another was rotated away from is `rotate`.

Beside FILE stands FILE.head: how many records there are, the last one's hash, and where in FILE it ends. It tells a cut
at the end from a file that was never longer. docs/auction.md, "Ledger".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

FORMAT, VERSION = "vickrey-ledger", 1
GENESIS = "0" * 64
RESERVED = frozenset({"index", "kind", "previous", "hash"})

_TAIL_OPEN, _TAIL_CLOSE = b',"hash":"', b'"}\n'
_TAIL = len(_TAIL_OPEN) + 64 + len(_TAIL_CLOSE)
_HEX = frozenset(b"0123456789abcdef")

# A head is always as long, so that it is overwritten in place.
HEAD_BYTES = 192


class LedgerError(Exception):
    """A ledger that cannot be read or continued; the text names file and record."""


class DamagedError(ValueError):
    """A line that is no record, or whose content does not match its hash."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read: everything but the four fields of the chain is in `fields`."""

    index: int
    kind: str
    previous: str
    hash: str
    fields: dict[str, Any]


def seal(body: bytes) -> tuple[bytes, str]:
    """Return the line and the hash of a record's canonical JSON."""
    digest = hashlib.sha256(body).hexdigest()
    return b'%b,"hash":"%b"}\n' % (body[:-1], digest.encode()), digest


def read_record(line: bytes) -> Record:
    """Return the record of one line, newline included; DamagedError says what is wrong with it."""
    digest = line[-_TAIL + len(_TAIL_OPEN) : -len(_TAIL_CLOSE)]
    framed = line[-_TAIL : -_TAIL + len(_TAIL_OPEN)] == _TAIL_OPEN and line[-len(_TAIL_CLOSE) :] == _TAIL_CLOSE
    if len(line) <= _TAIL or not framed or not _HEX.issuperset(digest):
        raise DamagedError("it does not end in a hash")
    stated = digest.decode()
    if hashlib.sha256(line[:-_TAIL] + b"}").hexdigest() != stated:
        raise DamagedError("its content does not match its hash")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"it is not JSON ({error})") from None
    index, kind, previous = (fields.pop(key, None) for key in ("index", "kind", "previous"))
    if not (isinstance(index, int) and isinstance(kind, str) and isinstance(previous, str)) or index < 0:
        raise DamagedError("it lacks index, kind or previous")
    fields.pop("hash", None)
    return Record(index, kind, previous, stated, fields)


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends."""

    records: int  # in the whole chain, those in files rotated away included
    hash: str  # of the last one
    end: int  # bytes of the present file up to and with it

    def render(self) -> bytes:
        text = json.dumps(
            {"end": self.end, "format": FORMAT, "hash": self.hash, "records": self.records}, separators=(",", ":")
        )
        return text.encode().ljust(HEAD_BYTES - 1) + b"\n"

    @staticmethod
    def parse(data: bytes) -> Head:
        """Return the head that these bytes are; DamagedError: they are none, or differ from it in a single byte."""
        try:
            found = json.loads(data)
            head = Head(found["records"], found["hash"], found["end"])
            whole = head.render() == data
        except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
            whole = False
        if not whole:
            raise DamagedError("it is not a ledger's head")
        return head
