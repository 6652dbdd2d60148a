"""How fast traces are read: million rows a second of CPU time, each format, from memory-warm files of the same rows.

    python benchmarks/trace_read.py [--quick] [--json]

Rows are made up (exponential gaps and work; URLs and hashes as long as the real ones). Rounds are interleaved; medians.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from testbed.traces.digits import hashed_one
from testbed.traces.generate import Recipe, generate, generated
from testbed.traces.reader import TraceFile
from testbed.traces.writer import Writer


def write_files(folder: Path, rows: int) -> dict[str, Path]:
    """Write the same trace in each format."""
    records = generated("poisson", flows=rows, rate=1000.0)
    seconds = [f"{t * 1e-9:.17f}" for t in records["t_ns"].tolist()]
    works = records["work"].tolist()
    lines: dict[str, Callable[[int], str]] = {
        "marllb": lambda i: f"{seconds[i]}\t/dummy.php/?n={int(works[i] * 4e8)}",
        "wikibench": lambda i: (
            f"{929840853 + i} {1190146243 + float(seconds[i]):.3f} "
            f"http://en.wikipedia.org/wiki/Special:Search?search=page+{i % 9973}&fulltext=Search -"
        ),
        "azure2021": lambda i: (
            f"{hashed_one(b'%d' % (i % 119)):064x},{hashed_one(b'%d' % (i % 424)):064x},"
            f"{float(seconds[i]) + works[i]:.12f},{works[i]:.3f}"
        ),
    }
    headers = {"marllb": "time\tquery\n", "azure2021": "app,func,end_timestamp,duration\n"}
    files = {}
    for name, line in lines.items():
        files[name] = folder / f"{name}.txt"
        files[name].write_text(headers.get(name, "") + "".join(f"{line(i)}\n" for i in range(rows)))
    files["marllb, gzip"] = folder / "marllb.gz"
    files["marllb, gzip"].write_bytes(gzip.compress(files["marllb"].read_bytes(), 6))
    for name in ("csv", "jsonl", "npy"):
        files[name] = folder / f"trace.{name}"
        with Writer(files[name]) as writer:
            writer.write(records)
    return files


def rows_per_second(work: Callable[[], int]) -> float:
    begin = time.process_time()
    rows = work()
    return rows / (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the rows, three rounds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows, rounds = (100_000, 3) if arguments.quick else (500_000, 7)
    with tempfile.TemporaryDirectory() as folder:
        jobs: dict[str, Callable[[], int]] = {
            f"read {name}": lambda path=path: sum(map(len, TraceFile(path).blocks()))  # type: ignore[misc]
            for name, path in write_files(Path(folder), rows).items()
        }
        jobs["generate poisson"] = lambda: sum(map(len, generate(Recipe("poisson", flows=rows))))
        jobs["generate wiki"] = lambda: sum(map(len, generate(Recipe("wiki", flows=rows))))
        speeds: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(rounds):
            for name, job in jobs.items():
                speeds[name].append(rows_per_second(job))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    if arguments.json:
        print(json.dumps({"rows_per_second": medians, "rows": rows, "rounds": rounds}, indent=2))
        return
    for name, value in medians.items():
        print(f"{name:20} {value / 1e6:6.2f} million rows a second")


if __name__ == "__main__":
    main()
