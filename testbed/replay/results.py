"""What a replay amounts to: one document of figures, the same in words, and the files of a folder."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.load.connection import CONNECT_TIMEOUT, TIMEOUT
from testbed.load.generator import Result, is_good
from testbed.load.report import Summary, columns, write_csv
from testbed.replay.run import Outcome
from testbed.replay.source import Plan, Trace

BINS_MOST = 600
FCT = ("min", "mean", "p50", "p90", "p95", "p99", "p999", "max")
REQUESTS_FORMATS = ("csv", "parquet", "both", "none")
_NEEDED = "needs vickrey[testbed]"


@dataclass(frozen=True)
class Replay:
    """A replay that was run."""

    trace: Trace
    plan: Plan
    outcome: Outcome
    summary: Summary
    origin: dict[str, Any]
    settings: dict[str, Any]  # what it was run with

    @property
    def is_partial(self) -> bool:
        return self.outcome.interrupted and (self.summary.unsent > 0 or self.summary.unanswered > 0)

    @property
    def failed(self) -> list[str]:
        """Why the command fails, in words."""
        reasons = [f"INVALID: {reason}" for reason in self.summary.invalid_because]
        if self.is_partial:
            total = self.summary.requests + self.summary.unsent
            reasons.append(
                f"PARTIAL: ended after {self.outcome.result.ended_s:.1f} of {self.plan.schedule.duration_s:.1f} s:"
                f" {self.summary.requests:,} of {total:,} requests sent, {self.summary.unanswered:,} not yet answered"
            )
        if not self.summary.answered and self.summary.requests:
            reasons.append("FAILED: no request was answered well")
        return reasons


def document(replay: Replay) -> dict[str, Any]:
    """Return everything as JSON; what is not known is null."""
    plan, summary, result = replay.plan, replay.summary, replay.outcome.result
    sent = result.records[~np.isnan(result.records["sent_s"])]
    good = sent[is_good(sent)]
    seconds = summary.seconds
    statuses = Counter(sent["status"][sent["status"] > 0].tolist())
    arrivals = plan.schedule.arrival_s
    found: dict[str, Any] = _clean(
        {
            "valid": summary.is_valid,
            "partial": replay.is_partial,
            "problems": replay.failed,
            "trace": {**replay.trace.as_json(), "sha256": plan.sha256, "requests_as": plan.kind, "speed": plan.speed},
            "load": {
                "offered_per_s": plan.offered,
                "capacity_per_s": plan.capacity,
                "load": plan.load,
                "unit": plan.unit,
            },
            "requests": {
                "scheduled": len(arrivals),
                "sent": summary.requests,
                "answered": summary.answered,
                "success": summary.answered / summary.requests if summary.requests else None,
                "unanswered": summary.unanswered,
                "unsent": summary.unsent,
                "rate_per_s": (summary.requests - 1) / seconds if seconds > 0 else None,
                "throughput_per_s": summary.answered / max(float(np.nanmax(good["done_s"])), 1e-9)
                if len(good)
                else None,
            },
            "seconds": {
                "scheduled": plan.schedule.duration_s,
                "sending": seconds,
                "all": result.ended_s,
                "waiting": max(0.0, result.ended_s - seconds),
            },
            "fct_ms": {name: getattr(summary, name) for name in FCT},
            "fct_at_least_ms": _at_least(sent),
            "late_ms": {
                "p50": summary.late_p50,
                "p99": summary.late_p99,
                "max": summary.late_max,
                "stall": summary.stall_max,
                "p99_bound": summary.late_limit,
                "max_bound": summary.late_max_limit,
            },
            "bytes_in": int(good["body_bytes"].sum()),
            "statuses": {str(status): count for status, count in sorted(statuses.items())},
            "errors": summary.errors,
            "servers": _servers(result, sent),
            "generator": {"cpu_us_per_request": summary.cpu_us, "cpu_share": result.cpu_s / max(result.ended_s, 1e-9)},
            "settings": replay.settings,
            "origin": replay.origin,
            "series": series(result, plan.schedule.duration_s),
        }
    )
    return found


def _at_least(sent: NDArray[np.void]) -> dict[str, float] | None:
    """Lower bounds of mean and percentiles where requests timed out: those count with the time they were waited for.

    Without them a server that answers fewer in time would look the faster. None: nothing timed out.
    """
    late = np.isin(sent["error"], (TIMEOUT, CONNECT_TIMEOUT))
    if not late.any():
        return None
    counted = sent[is_good(sent) | late]
    fct_ms = (counted["done_s"] - counted["scheduled_s"]) * 1e3
    values = np.percentile(fct_ms, (50, 90, 95, 99, 99.9)).tolist()
    return {"mean": float(fct_ms.mean())} | dict(zip(("p50", "p90", "p95", "p99", "p999"), values, strict=True))


def _servers(result: Result, sent: NDArray[np.void]) -> list[dict[str, Any]]:
    """What each server gave, where answers say who gave them (X-Server)."""
    rows = []
    for number, name in enumerate(result.servers):
        own = sent[(sent["server"] == number) & is_good(sent)]
        fct_ms = (own["done_s"] - own["scheduled_s"]) * 1e3
        mean, p99 = (float(fct_ms.mean()), float(np.percentile(fct_ms, 99))) if len(own) else (math.nan, math.nan)
        rows.append({"server": name, "answered": len(own), "share": len(own) / len(sent), "mean": mean, "p99": p99})
    return sorted(rows, key=lambda row: str(row["server"]))


def series(result: Result, duration_s: float) -> dict[str, Any]:
    """Return the course of the run: a row a second, or longer in a long run; completion times in milliseconds.

    Completion times and lateness stand at the time when the requests were due, answers and errors when they came.
    """
    sent = result.records[~np.isnan(result.records["sent_s"])]
    length_s = max(1.0, math.ceil(duration_s / BINS_MOST))
    ended_s = float(np.nanmax(np.concatenate([sent["sent_s"], sent["done_s"], [0.0]])))
    count = int(ended_s // length_s) + 1
    good = sent[is_good(sent)]
    over = sent[~np.isnan(sent["done_s"])]

    def amount(times: Any) -> NDArray[np.int64]:
        return np.bincount((times // length_s).astype(np.int64), minlength=count)[:count]

    def spread(rows: NDArray[np.void], values: Any, quantiles: tuple[float, ...]) -> list[list[float]]:
        edges = np.searchsorted(rows["scheduled_s"], np.arange(count + 1) * length_s)
        found = [
            np.percentile(values[low:high], quantiles).tolist() if high > low else [math.nan] * len(quantiles)
            for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        ]
        return [list(column) for column in zip(*found, strict=True)]

    p50, p90, p99, most = spread(good, (good["done_s"] - good["scheduled_s"]) * 1e3, (50, 90, 99, 100))
    late99, late_max = spread(sent, (sent["sent_s"] - sent["scheduled_s"]) * 1e3, (99, 100))
    ends = np.arange(1, count + 1) * length_s
    done = np.sort(over["done_s"])
    in_flight = np.searchsorted(np.sort(sent["sent_s"]), ends) - np.searchsorted(done, ends)
    return {
        "bin_s": length_s,
        "t_s": (np.arange(count) * length_s).tolist(),
        "sent_per_s": (amount(sent["sent_s"]) / length_s).tolist(),
        "answered_per_s": (amount(good["done_s"]) / length_s).tolist(),
        "errors_per_s": (amount(over["done_s"][~is_good(over)]) / length_s).tolist(),
        "in_flight": in_flight.tolist(),
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": most,
        "late_p99": late99,
        "late_max": late_max,
    }


def _clean(value: Any) -> Any:
    """Return the value with null for what JSON has no word for."""
    if isinstance(value, dict):
        return {key: _clean(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def text(found: dict[str, Any]) -> str:
    """Return the document in words, laid out as vegeta's."""
    from controlplane.table import milliseconds, number

    requests, seconds, fct, late = found["requests"], found["seconds"], found["fct_ms"], found["late_ms"]
    load, rate = found["load"], number(requests["rate_per_s"], 1)
    success = requests["success"]
    mean_bytes = found["bytes_in"] / requests["answered"] if requests["answered"] else None
    lines = [
        ("Trace", "[name, requests as, speed]", f"{found['trace']['name']}, {found['trace']['requests_as']},"
         f" x{found['trace']['speed']:.4g}"),
        ("Requests", "[sent, rate/s, throughput/s]",
         f"{requests['sent']:,}, {rate}, {number(requests['throughput_per_s'], 1)}"),
        ("Duration", "[all, sending, waiting]",
         f"{seconds['all']:.2f} s, {seconds['sending']:.2f} s, {seconds['waiting']:.2f} s"),
    ]  # fmt: skip
    if load["load"] is not None:
        lines.append(
            ("Load", "[offered, of capacity]",
             f"{load['load']:.3f}, {load['capacity_per_s']:,.6g} {load['unit']} a second")
        )  # fmt: skip
    lines += [
        ("FCT ms", "[min, mean, 50, 90, 95, 99, 99.9, max]", ", ".join(milliseconds(fct[name]) for name in FCT)),
    ]  # fmt: skip
    if found["fct_at_least_ms"]:
        least = ", ".join(milliseconds(value) for value in found["fct_at_least_ms"].values())
        lines.append(("with timeouts", "[mean, 50, 90, 95, 99, 99.9; at least]", least))
    lines += [
        ("Lateness ms", "[50, 99, max, stall]",
         ", ".join(milliseconds(late[name]) for name in ("p50", "p99", "max", "stall"))),
        ("Bytes in", "[total, mean]", f"{found['bytes_in']:,}, {number(mean_bytes, 1)}"),
        ("Success", "[ratio]", "-" if success is None else f"{100 * success:.2f}%"),
        ("Status codes", "[code:count]", _counts(found["statuses"], ":") or "-"),
        ("Errors", "[class:count]", _counts(found["errors"], ": ") or "none"),
        ("Generator", "[CPU/request, of a core]",
         f"{number(found['generator']['cpu_us_per_request'], 0)} µs, {100 * found['generator']['cpu_share']:.1f}%"),
    ]  # fmt: skip
    if len(found["servers"]) > 1:
        shares = ", ".join(f"{row['server']} {100 * row['share']:.1f}%" for row in found["servers"])
        lines.append(("Servers", "[share]", shares))
    out = [f"{name:<13} {what:<39} {value}" for name, what, value in lines]
    return "\n".join([*out, *found["problems"]])


def _counts(counts: dict[str, int], between: str) -> str:
    return "  ".join(f"{name}{between}{count}" for name, count in counts.items())


class Folder:
    """The folder of a report. Made at once, and what it needs looked for: what is wrong is said before the work."""

    def __init__(self, path: Path, requests: str) -> None:
        self.path = path
        self._requests = requests
        need("hdrh", "the histogram")
        need("plotly", "the report")
        if requests in ("parquet", "both"):
            need("pyarrow", "--requests parquet", "pyarrow")
        path.mkdir(parents=True, exist_ok=True)

    def write(self, replay: Replay, found: dict[str, Any]) -> list[str]:
        """Write all files; each appears when it is complete. Returns their paths. OSError when one cannot be."""
        from testbed.replay import report
        from testbed.replay.histogram import write_hgrm, write_log

        result = replay.outcome.result
        good = result.records[is_good(result.records)]
        fct_s = good["done_s"] - good["scheduled_s"]
        more = {"work": replay.plan.work[~np.isnan(result.records["sent_s"])]}
        note = f"completion times in microseconds; {'PARTIAL; ' if replay.is_partial else ''}trace {replay.plan.sha256}"
        writers: dict[str, Callable[[Path], None]] = {
            "result.json": lambda path: _write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n"),
            "requests.csv": lambda path: write_csv(result, path, more),
            "requests.parquet": lambda path: write_parquet(result, path, more),
            "latency.hgrm": lambda path: write_hgrm(fct_s, path),
            "latency.hlog": lambda path: write_log(good["done_s"], fct_s, path, note),
            "report.html": lambda path: _write_text(path, report.html(found, fct_s)),
        }
        left_out = {"csv": {"requests.parquet"}, "parquet": {"requests.csv"}, "both": set()}.get(
            self._requests, {"requests.csv", "requests.parquet"}
        )
        written = []
        for name, write in writers.items():
            if name in left_out:
                continue
            part = self.path / f".{name}.part{os.getpid()}"
            try:
                write(part)
                part.replace(self.path / name)
            finally:
                part.unlink(missing_ok=True)
            written.append(str(self.path / name))
        return written


def need(module: str, what: str, package: str | None = None) -> None:
    """ImportError in words for the user when an optional package is missing."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise ImportError(f"{what} needs {package}" if package else f"{what} {_NEEDED}")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_parquet(result: Result, path: Path, more: dict[str, NDArray[Any]]) -> None:
    """Write the table of write_csv as Parquet, NaN as null."""
    import pyarrow  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import pyarrow.parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]

    table = {
        name: pyarrow.array(values, from_pandas=values.dtype.kind == "f")
        for name, values in {**columns(result), **more}.items()
    }
    pyarrow.parquet.write_table(pyarrow.table(table), path)
