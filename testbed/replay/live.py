"""Progress and percentiles of a run while it goes on, on standard error: a bar on a terminal, else a line at times."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, TextIO

import numpy as np

from testbed.load.connection import OK
from testbed.load.generator import Generator
from testbed.replay.source import Plan

if TYPE_CHECKING:
    from rich.console import Group

WINDOW_S = 5.0  # the recent percentiles are of what ended within so long
LINE_EVERY_S = 5.0  # where there is no terminal
# Completion times from 10 µs to 1,000 s in buckets of 2 %: percentiles of the whole run without its values.
_LOW_S, _HIGH_S = 1e-5, 1e3
_BOUNDS_S = np.geomspace(_LOW_S, _HIGH_S, 931)


class Live:
    """`with Live(plan) as live: live.update(generator)`, from any thread, one at a time."""

    def __init__(self, plan: Plan, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(file=stream or sys.stderr)
        self._total_s = max(plan.schedule.duration_s, 1e-9)
        self._requests = len(plan.schedule)
        self._seen = 0
        self._recent: deque[tuple[float, float]] = deque()  # (when, completion time)
        self._counts = np.zeros(len(_BOUNDS_S) + 1, dtype=np.int64)
        self._late: deque[float] = deque(maxlen=2000)
        self._late_max_s = 0.0
        self._errors = 0
        self._printed_s = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[clock]}"), console=self._console, auto_refresh=False,
        )  # fmt: skip
        self._task = self._progress.add_task("replay", total=self._total_s, clock="")
        self._live = RichLive(console=self._console, auto_refresh=False, transient=True)
        self._drawn = False

    def __enter__(self) -> Live:
        if self._console.is_terminal:
            self._live.start()
            self._drawn = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            self._live.stop()

    def update(self, generator: Generator) -> None:
        self._take(generator)
        now_s = generator.now_s
        if self._drawn:
            self._live.update(self._drawing(generator, now_s), refresh=True)
        elif now_s - self._printed_s >= LINE_EVERY_S:
            self._printed_s = now_s
            print(
                f"{now_s:6.1f} of {self._total_s:.1f} s  {generator.sent:,} sent  {self._line(generator)}",
                file=self._console.file,
                flush=True,
            )

    def _take(self, generator: Generator) -> None:
        order, seen = generator.order, len(generator.order)
        now_s = generator.now_s
        values = []
        for at in range(self._seen, seen):
            fct_s, late_s, status, error = generator.outcome(order[at])
            self._late.append(late_s)
            self._late_max_s = max(self._late_max_s, late_s)
            if error == OK and 200 <= status < 400:
                values.append(fct_s)
                self._recent.append((now_s, fct_s))
            else:
                self._errors += 1
        self._seen = seen
        if values:
            np.add.at(self._counts, np.searchsorted(_BOUNDS_S, values), 1)
        while self._recent and self._recent[0][0] < now_s - WINDOW_S:
            self._recent.popleft()

    def _drawing(self, generator: Generator, now_s: float) -> Group:
        from rich.console import Group
        from rich.text import Text

        waits = generator.sent == self._requests
        what = f"waits for {generator.in_flight:,} answers" if waits else f"{now_s:.1f} of {self._total_s:.1f} s"
        self._progress.update(self._task, completed=min(now_s, self._total_s), clock=what)
        recent = np.array([fct_s for _, fct_s in self._recent]) * 1e3
        last = _percentiles(*(np.percentile(recent, (50, 90, 99)) if len(recent) else [np.nan] * 3))
        return Group(
            self._progress.get_renderable(),
            Text(f"  last {WINDOW_S:.0f} s   {last}  {len(recent) / min(WINDOW_S, max(now_s, 0.5)):.0f}/s answered"),
            Text(f"  so far     {self._line(generator)}"),
        )

    def _line(self, generator: Generator) -> str:
        late = np.percentile(self._late, 99) * 1e3 if self._late else 0.0
        return (
            f"{_percentiles(*(self._quantile(q) * 1e3 for q in (0.5, 0.9, 0.99)))}  in flight {generator.in_flight:,}"
            f"  errors {self._errors:,}  late p99 {late:.2f} max {self._late_max_s * 1e3:.1f} ms"
        )

    def _quantile(self, q: float) -> float:
        total = int(self._counts.sum())
        if total == 0:
            return float("nan")
        at = int(np.searchsorted(np.cumsum(self._counts), q * total))
        return float(_BOUNDS_S[min(at, len(_BOUNDS_S) - 1)])


def _percentiles(p50: float, p90: float, p99: float) -> str:
    if p50 != p50:
        return "FCT ms -"
    return f"FCT ms p50 {p50:.1f} p90 {p90:.1f} p99 {p99:.1f}"
