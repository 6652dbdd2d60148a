"""A worker's side of a segment for tests of the reading functions: rows written straight into the mapped memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shm_layout.layout import FLOW_RECORD, RESERVOIR, SAMPLE, SERVER_STATS, SERVER_WORD, WORKER
from shm_layout.segment import Segment


class Raw:
    """Views of a segment's rows. Drop it before the segment is closed: a mapping with views cannot be."""

    def __init__(self, segment: Segment) -> None:
        header, limits = segment.read_header(), segment.limits
        servers, workers = limits.max_servers, limits.max_workers
        self._memory = np.frombuffer(segment.memory, dtype=np.uint8)
        self.words = self._rows(int(header["off_words"]), SERVER_WORD, servers)["word"]
        self.workers = self._rows(int(header["off_workers"]), WORKER, workers)
        stats = self._rows(int(header["off_stats"]), SERVER_STATS, workers * servers)
        self.stats = stats.reshape(workers, servers)
        rings = self._rows(int(header["off_rings"]), FLOW_RECORD, workers * limits.ring_slots)
        self.rings = rings.reshape(workers, limits.ring_slots)
        stride, start = int(header["reservoir_stride"]), int(header["off_reservoirs"])
        rows = self._memory[start : start + workers * servers * 2 * stride].reshape(workers, servers, 2, stride)
        self._reservoirs = rows
        self._slots = limits.reservoir_slots

    def _rows(self, start: int, dtype: np.dtype[Any], n: int) -> NDArray[np.void]:
        return self._memory[start : start + n * dtype.itemsize].view(dtype)

    def reservoir(self, worker: int, server: int, metric: int) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Return head (1,) and samples (slots,) of one reservoir."""
        row = self._reservoirs[worker, server, metric]
        head = row[: RESERVOIR.itemsize].view(RESERVOIR)
        return head, row[RESERVOIR.itemsize :][: self._slots * SAMPLE.itemsize].view(SAMPLE)

    def fill(self, worker: int, server: int, metric: int, id: int, samples: list[tuple[int, int]], count: int) -> None:
        """Write a reservoir: samples of (time_ns, value_ns), of `count` that were offered."""
        head, slots = self.reservoir(worker, server, metric)
        head["id"], head["count"], head["sequence"] = id, count, 2
        for slot, sample in zip(slots, samples, strict=False):
            slot["time_ns"], slot["value_ns"] = sample
        self.workers["started_ns"][worker] = 1
