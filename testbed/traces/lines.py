"""A file, a gzip file or standard input as pieces of whole lines, in bounded memory and with a look at the beginning.

However the bytes come (the size of a read is a pipe's or a disk's affair), the lines are the same.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from testbed.traces.record import TraceError

CHUNK_BYTES = 1 << 20
PEEK_BYTES = 1 << 16
LINE_MOST = 1 << 18  # a longer line is a bad row; what is kept of it is one byte more

STDIN = "-"
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Input:
    """Bytes of a trace, decompressed. Errors of the file and of its compression become TraceError."""

    def __init__(self, path: str | os.PathLike[str], chunk_bytes: int = CHUNK_BYTES) -> None:
        self.name = "standard input" if os.fspath(path) == STDIN else os.fspath(path)
        self._chunk = max(1, chunk_bytes)
        self._ahead = b""
        self._files: list[BinaryIO] = []
        try:
            if os.fspath(path) == STDIN:
                self._file: BinaryIO = sys.stdin.buffer
            else:
                self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
                self._files.append(self._file)
            self._ahead = self._fill(2)
            if self._ahead == _GZIP:
                self._file = gzip.GzipFile(fileobj=_Rejoined(self._ahead, self._file))  # type: ignore[assignment]
                self._ahead = b""
            self._ahead += self._fill(PEEK_BYTES - len(self._ahead))
        except (OSError, EOFError, zlib.error) as error:
            self.close()
            raise self._failure(error) from None
        except TraceError:
            self.close()
            raise

    def _failure(self, error: Exception) -> TraceError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return TraceError(f"{self.name}: {reason}")

    def _fill(self, n: int) -> bytes:
        """Read n bytes, fewer only at the end."""
        pieces = []
        while n > 0 and (piece := self._raw(n)):
            pieces.append(piece)
            n -= len(piece)
        return b"".join(pieces)

    def _raw(self, n: int) -> bytes:
        try:
            return self._file.read(n)
        except (OSError, EOFError, zlib.error) as error:
            raise self._failure(error) from None

    @property
    def beginning(self) -> bytes:
        """The first PEEK_BYTES, or all there is; nothing of it has been taken."""
        return self._ahead.removeprefix(_BYTE_ORDER_MARK)

    def read(self, n: int) -> bytes:
        """Read n bytes, fewer only at the end; negative: all."""
        if n < 0:
            return b"".join(iter(lambda: self.read(CHUNK_BYTES), b""))
        taken, self._ahead = self._ahead[:n], self._ahead[n:]
        return taken + self._fill(n - len(taken))

    def pieces(self) -> Iterator[bytes]:
        """Yield whole lines, many at a time, each ended by a newline; a too long line is cut."""
        carry, cutting = b"", False
        first = True
        while data := self.read(self._chunk):
            if first:
                while len(data) < 3 and (more := self.read(3 - len(data))):
                    data += more
                data, first = data.removeprefix(_BYTE_ORDER_MARK), False
            if cutting:
                end = data.find(b"\n")
                if end < 0:
                    continue
                data, cutting = data[end:], False
            end = data.rfind(b"\n") + 1
            if end:
                yield carry + data[:end]
                carry = data[end:]
            else:
                carry += data
            if len(carry) > LINE_MOST:
                carry, cutting = carry[: LINE_MOST + 1], True
        if carry:
            yield carry + b"\n"

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Rejoined(io.RawIOBase):
    """A file whose first bytes were read already, for gzip."""

    def __init__(self, ahead: bytes, file: BinaryIO) -> None:
        self._ahead = ahead
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, n: int = -1) -> bytes:
        taken, self._ahead = self._ahead[:n], self._ahead[n:]
        return taken + self._file.read(n - len(taken))
