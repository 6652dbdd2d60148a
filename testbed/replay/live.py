"""Progress and percentiles of a run while it goes on, on standard error: a bar on a terminal, else a line at times.

The bar is drawn by a child process (bar.py): drawing takes milliseconds, in which no request would leave. It is told
four times a second in a line that a pipe takes whole or not at all, so that a terminal that stands still (Ctrl-S)
does not stop the load.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from testbed.load.connection import OK
from testbed.load.generator import Generator
from testbed.replay.source import Plan

WINDOW_S = 5.0  # the recent percentiles are of what ended within so long
LINE_EVERY_S = 2.0  # where there is no terminal
_QUANTILES = (50, 90, 99)
# Completion times from 10 µs to 1,000 s in buckets of 2 %: percentiles of the whole run without its values.
_BOUNDS_S = np.geomspace(1e-5, 1e3, 931)
_ROOT = Path(__file__).resolve().parent.parent.parent


class Live:
    """`with Live(plan) as live: live.update(generator)`, a few times a second."""

    def __init__(self, plan: Plan) -> None:
        self._total_s = plan.schedule.duration_s
        self._requests = len(plan.schedule)
        self._seen = 0
        self._recent: deque[tuple[float, float]] = deque()  # (when, completion time)
        self._counts = np.zeros(len(_BOUNDS_S) + 1, dtype=np.int64)
        self._late: deque[float] = deque(maxlen=2000)
        self._late_max_s = 0.0
        self._errors = 0
        self._printed_s = 0.0
        self._bar: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Live:
        if sys.stderr.isatty():
            self._bar = subprocess.Popen(
                [sys.executable, "-m", "testbed.replay.bar"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C reaches both: we end it
            )
            assert self._bar.stdin is not None
            assert self._bar.stdout is not None
            self._bar.stdout.read(1)  # it is up: its start takes a core for a while, which the load shall not feel
            os.set_blocking(self._bar.stdin.fileno(), False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None and self._bar.stdin is not None:
            self._bar.stdin.close()
            if self._bar.stdout is not None:
                self._bar.stdout.close()
            try:
                self._bar.wait(2.0)
            except subprocess.TimeoutExpired:
                self._bar.kill()
                self._bar.wait()

    def update(self, generator: Generator) -> None:
        now_s = generator.now_s
        self._take(generator, now_s)
        if self._bar is not None and self._bar.stdin is not None:
            line = json.dumps(self._snapshot(generator, now_s)).encode() + b"\n"
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self._bar.stdin.fileno(), line)
        elif now_s - self._printed_s >= LINE_EVERY_S:
            self._printed_s = now_s
            print(
                f"{now_s:6.1f} of {self._total_s:.1f} s  {generator.sent:,} sent  "
                + "  ".join(lines(self._snapshot(generator, now_s))),
                file=sys.stderr,
                flush=True,
            )

    def _take(self, generator: Generator, now_s: float) -> None:
        values = []
        ended = generator.order[self._seen :]
        self._seen += len(ended)
        for index in ended:
            fct_s, late_s, status, error = generator.outcome(index)
            self._late.append(late_s)
            if late_s > self._late_max_s:
                self._late_max_s = late_s
            if error == OK and 200 <= status < 400:
                values.append(fct_s)
                self._recent.append((now_s, fct_s))
            else:
                self._errors += 1
        if values:
            np.add.at(self._counts, np.searchsorted(_BOUNDS_S, values), 1)
        while self._recent and self._recent[0][0] < now_s - WINDOW_S:
            self._recent.popleft()

    def _snapshot(self, generator: Generator, now_s: float) -> dict[str, Any]:
        recent = [fct_s * 1e3 for _, fct_s in self._recent]
        return {
            "now_s": now_s,
            "total_s": self._total_s,
            "waits": generator.sent == self._requests,
            "in_flight": generator.in_flight,
            "recent": np.percentile(recent, _QUANTILES).tolist() if recent else None,
            "rate": len(recent) / min(WINDOW_S, max(now_s, 0.5)),
            "so_far": [self._quantile(q / 100) * 1e3 for q in _QUANTILES] if self._counts.any() else None,
            "errors": self._errors,
            "late_ms": [float(np.percentile(self._late, 99)) * 1e3 if self._late else 0.0, self._late_max_s * 1e3],
        }

    def _quantile(self, q: float) -> float:
        counted = np.cumsum(self._counts)
        at = int(np.searchsorted(counted, q * counted[-1]))
        return float(_BOUNDS_S[min(at, len(_BOUNDS_S) - 1)])


def lines(snapshot: dict[str, Any]) -> list[str]:
    """Return a snapshot in words: recent, so far, health."""
    late99, late_max = snapshot["late_ms"]
    return [
        f"last {WINDOW_S:.0f} s  {_percentiles(snapshot['recent'])}  {snapshot['rate']:.0f}/s",
        f"so far    {_percentiles(snapshot['so_far'])}",
        f"in flight {snapshot['in_flight']:,}  errors {snapshot['errors']:,}"
        f"  late ms p99 {late99:.2f} max {late_max:.1f}",
    ]


def _percentiles(values: list[float] | None) -> str:
    if values is None:
        return "FCT ms -"
    return "FCT ms " + " ".join(f"p{q} {value:.1f}" for q, value in zip(_QUANTILES, values, strict=True))
