"""How long the observation table takes: read every reservoir of a real segment and compute the 11 features.

python benchmarks/features.py [--servers 16 256 4096] [--workers 1] [--slots 128] [--json]
"""

import argparse
import json
import os
import time

import numpy as np

from shm_layout.features import features_of, read_features
from shm_layout.layout import METRIC_DURATION, METRIC_FCT, RESERVOIR, SAMPLE, WORKER
from shm_layout.segment import Limits, Segment, now_ns, segment_name


def fill(segment: Segment, servers: int, workers: int, slots: int) -> None:
    """Write full reservoirs of exponential samples from the last 20 s, as workers that stopped would leave them."""
    generator = np.random.default_rng(1)
    header = segment.read_header()
    memory = np.frombuffer(segment.memory, dtype=np.uint8)
    blocks = memory[int(header["off_workers"]) :][: workers * WORKER.itemsize].view(WORKER)
    blocks["started_ns"] = 1
    stride = int(header["reservoir_stride"])
    count = workers * servers * 2
    rows = memory[int(header["off_reservoirs"]) :][: count * stride].reshape(count, stride)
    heads = np.zeros(count, dtype=RESERVOIR)
    heads["sequence"], heads["count"] = 2, 1000
    heads["id"] = np.tile(np.repeat(np.arange(1, servers + 1), 2), workers)
    rows[:, : RESERVOIR.itemsize] = heads.view(np.uint8).reshape(count, -1)
    samples = np.zeros((count, slots), dtype=SAMPLE)
    samples["time_ns"] = now_ns() - generator.integers(0, 20 * 10**9, samples.shape)
    samples["value_ns"] = generator.exponential(20e6, samples.shape)
    rows[:, RESERVOIR.itemsize :][:, : slots * SAMPLE.itemsize] = samples.view(np.uint8).reshape(count, -1)


def measure(servers: int, workers: int, slots: int) -> dict[str, float]:
    """Return milliseconds, the median of several rounds."""
    name = segment_name(f"bench{os.getpid()}", "features")
    limits = Limits(max_servers=servers, max_workers=workers, reservoir_slots=slots)
    with Segment.create(name, limits, "features") as segment:
        try:
            fill(segment, servers, workers, slots)
            ids = np.arange(1, servers + 1, dtype=np.uint64)
            whole, read, compute = [], [], []
            for _ in range(15):
                t0 = time.perf_counter()
                table = read_features(segment, ids)
                t1 = time.perf_counter()
                fct, duration = segment.read_reservoirs(METRIC_FCT), segment.read_reservoirs(METRIC_DURATION)
                t2 = time.perf_counter()
                features_of(ids, table.values[:, 0], fct, duration)
                t3 = time.perf_counter()
                whole.append(t1 - t0)
                read.append(t2 - t1)
                compute.append(t3 - t2)
            assert abs(table.values[:, 1].mean() - 0.020) < 0.001
        finally:
            segment.unlink()
    milliseconds = {k: float(np.median(v)) * 1e3 for k, v in (("whole", whole), ("read", read), ("compute", compute))}
    return {"servers": servers, "workers": workers, "slots": slots, **milliseconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, nargs="+", default=[16, 256, 4096])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    options = parser.parse_args()
    rows = [measure(servers, options.workers, options.slots) for servers in options.servers]
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{'servers':>8} {'workers':>8} {'read + compute':>15} {'read':>9} {'compute':>9}")
    for row in rows:
        print(
            f"{row['servers']:8.0f} {row['workers']:8.0f} {row['whole']:12.2f} ms {row['read']:6.2f} ms"
            f" {row['compute']:6.2f} ms"
        )


if __name__ == "__main__":
    main()
