"""A segment in private memory with a simulation's clock: what reads and steers a live one works on it unchanged."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

import numpy as np

from shm_layout._segment import ffi, lib
from shm_layout.errors import SegmentError
from shm_layout.mapping import Limits, check_return
from shm_layout.segment import Segment, Words

_WORD_TIME_BITS = 48
_WORD_TIME_UNIT_NS = 128


class MemorySegment(Segment):
    """Anonymous memory, no name and no descriptor; one controller, which needs no lock."""

    def __init__(self, limits: Limits, clock: Callable[[], int]) -> None:
        self.name = "simulated"
        self.writable = True
        self.inode = 0
        self.clock = clock
        self._closed = False
        size = limits.size_bytes
        self._memory = mmap.mmap(-1, size)
        self._base = ffi.from_buffer(self._memory, require_writable=True)
        check_return(lib.segment_format(self._base, size, limits.as_c(), b"sim", os.getpid(), clock()), self.name)
        self._header = ffi.new("struct segment_header *", ffi.cast("struct segment_header *", self._base)[0])

    @property
    def base(self) -> object:
        if self._closed:
            raise SegmentError(f"{self.name}: closed")
        return self._base

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            ffi.release(self._base)
            self._memory.close()

    def unlink(self) -> None:
        """Nothing: it has no name."""

    def begin_controller(self, *, takeover: bool = False) -> int:
        self._epoch = int(lib.segment_controller_begin(self.base, os.getpid(), self.clock()))
        return self._epoch

    def beat_controller(self, cycle_ns: int, late: int = 0, failed: int = 0) -> None:
        self._check_epoch()
        lib.segment_controller_beat(self.base, self.clock(), cycle_ns, late, failed)

    def read_words(self, first: int = 0, n: int | None = None) -> Words:
        n = self._count(first, n)
        words = np.empty(n, dtype=np.uint64)
        self._call(lib.segment_read_words, first, n, ffi.from_buffer("uint64_t[]", words))
        # Simulated time does not wrap within 417 days.
        changed = (words & np.uint64((1 << _WORD_TIME_BITS) - 1)) * np.uint64(_WORD_TIME_UNIT_NS)
        return Words((words >> np.uint64(_WORD_TIME_BITS)).astype(np.uint32), changed)
