"""What the demo shows: a live table on a terminal, plain lines elsewhere, and the summary of the phases."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from testbed.load.connection import OK
from testbed.load.generator import Finished

if TYPE_CHECKING:
    from testbed.demo import Demo, Phase

LATE_MS = 20.0  # p99 of the generator's lateness that would show in the figures
_LINE_S = 2.0  # between two plain lines
_BAR = 16


class View:
    """Shows one demo on one stream."""

    def __init__(self, stream: TextIO) -> None:
        self.console = Console(file=stream, highlight=False)
        self._live: Live | None = None
        self._next_line = 0.0

    def start(self, demo: Demo) -> None:
        args, say = demo.args, self._say
        speeds = ", ".join(f"{speed:g}" for speed in args.servers)
        say(f"servers    {len(args.servers)} of speeds {speeds}, {args.workers} at once each; the balancer is not told")
        say(f"balancer   {demo.balancer.url}     dashboard   {demo.balancer.dashboard_url}")
        if args.no_load:
            say(f"try        curl '{demo.balancer.url}?d=40'     (40 ms of work at speed 1); Ctrl-C ends it")
            return
        say(f"load       {demo.rate:.0f} requests/s, {args.load:.0%} of capacity, the same each phase; Ctrl-C ends it")
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    def stop(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def show(self, demo: Demo) -> None:
        phase = demo.phases[-1]
        if self._live:
            done = [text for text in map(_phase_line, demo.phases) if text]
            self._live.update(Group(_servers(demo, phase), _overall(phase), *done), refresh=True)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_S
            self.console.print(_overall(phase), soft_wrap=True)

    def summary(self, phases: Sequence[Phase], interrupted: bool) -> None:
        """The phases side by side."""
        say = self._say
        finished = [phase for phase in phases if phase.summary]
        if not finished:
            return
        table = Table(title="Flow completion time, ms", title_justify="left", box=None, pad_edge=False)
        table.add_column("policy")
        for name in ("mean", "p50", "p90", "p99", "unanswered", "errors"):
            table.add_column(name, justify="right", min_width=8)
        for phase in finished:
            s = phase.summary
            assert s is not None
            row = [f"{value:.1f}" for value in (s.mean, s.p50, s.p90, s.p99)]
            table.add_row(phase.policy, *row, str(s.unanswered), str(sum(s.errors.values())))
        say("")
        self.console.print(table)
        last = finished[-1].summary
        for phase in finished[:-1]:
            if phase.summary and last:
                mean, p99 = last.mean / phase.summary.mean, last.p99 / phase.summary.p99
                say(f"{finished[-1].policy} to {phase.policy}: mean {mean:.3f}, p99 {p99:.3f} of it")
        if any(phase.summary.unanswered for phase in finished if phase.summary):
            say("unanswered: still waiting when the phase ended; counted with the age they had reached")
        late = max(phase.summary.late_p99 for phase in finished if phase.summary)
        if late > LATE_MS:
            self.console.print(
                f"the load generator was late (p99 {late:.1f} ms): too little CPU, do not trust the figures"
            )
        if interrupted:
            say("interrupted: the other phases did not run to their end")


def _percentiles(finished: Sequence[Finished]) -> tuple[float, float]:
    fct = [one.fct_s * 1e3 for one in finished if one.error == OK]
    if not fct:
        return float("nan"), float("nan")
    p50, p99 = np.percentile(fct, (50, 99)).tolist()
    return p50, p99


def _ms(value: float) -> str:
    if value != value:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _servers(demo: Demo, phase: Phase) -> Table:
    window = phase.shown
    by_server: dict[str, list[Finished]] = {}
    for one in window:
        by_server.setdefault(one.server, []).append(one)
    known = {server["name"]: server for server in phase.servers}
    table = Table(title=f"{phase.policy}: {phase.title}", title_justify="left", box=None, pad_edge=False)
    for name in ("server", "speed", "share", "", "in flight", "weight", "FCT p50", "p99 ms"):
        table.add_column(name, justify="left" if name in ("server", "") else "right", min_width=8 if name else _BAR)
    for spec in demo.farm.specs:
        mine = by_server.get(spec.name, [])
        share = len(mine) / max(len(window), 1)
        said = known.get(spec.name, {})
        weight = said.get("learned_weight")
        p50, p99 = _percentiles(mine)
        table.add_row(
            spec.name,
            f"{spec.speed:g}",
            f"{share:.1%}",
            "█" * min(round(share * 2 * _BAR), _BAR),
            str(said.get("in_flight", "–")),
            "–" if weight is None else f"{weight:.3g}",
            _ms(p50),
            _ms(p99),
        )
    return table


def _overall(phase: Phase) -> Text:
    p50, p99 = _percentiles(phase.shown)
    elapsed = min(max(phase.elapsed_s, 0.0), phase.seconds + 9)
    fct = f"FCT p50 {_ms(p50):>6}  p99 {_ms(p99):>6} ms"
    return Text(f"{phase.policy:<9} {elapsed:4.0f} s  in flight {phase.in_flight:4d}  {fct}", style="bold")


def _phase_line(phase: Phase) -> Text | None:
    if phase.summary is None:
        return None
    s = phase.summary
    p50, p99 = _ms(s.p50), _ms(s.p99)
    return Text(f"{phase.policy:<9} done  mean {_ms(s.mean):>6} ms    FCT p50 {p50:>6} ms  p99 {p99:>6} ms")
