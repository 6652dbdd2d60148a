"""What a run of the generator amounts to: percentiles, errors, and whether the generator itself kept up."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.demand import Floats
from testbed.load.connection import ABORTED, ERROR_NAMES, LOCAL, OK
from testbed.load.generator import Result, is_good

# The generator's own lateness above which a run proves nothing: p99 over the requests, and the worst of all, which
# is that of a request or of the clock that ticks between them.
LATE_LIMIT_MS = 5.0
LATE_MAX_LIMIT_MS = 200.0
PRIORITY_HINT = " (a higher --priority may help)"


@dataclass(frozen=True)
class Summary:
    """Flow completion times in milliseconds, of the requests that were answered well; NaN when there were none."""

    requests: int
    answered: int
    seconds: float
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    late_p50: float
    late_p99: float
    late_max: float
    unanswered: int  # still waiting when the run was ended
    errors: dict[str, int]
    unsent: int = 0  # their time had not come when the run was ended
    min: float = math.nan
    p95: float = math.nan
    stall_max: float = 0.0  # the longest time for which the generator did nothing though it should have
    cpu_us: float = math.nan  # what the generator spent on a request
    late_limit: float = LATE_LIMIT_MS
    late_max_limit: float = LATE_MAX_LIMIT_MS

    @property
    def invalid_because(self) -> list[str]:
        """Why the run proves nothing, in words: the generator did not send on time, or could not send."""
        reasons = []
        if self.late_p99 > self.late_limit:
            reasons.append(
                f"the generator was late by more than {self.late_limit:g} ms (p99 {self.late_p99:.1f}): too little CPU"
                f" for it{PRIORITY_HINT}"
            )
        worst = max(self.stall_max, 0.0 if math.isnan(self.late_max) else self.late_max)
        if worst > self.late_max_limit:
            reasons.append(
                f"the generator stood still for {worst:.0f} ms, more than {self.late_max_limit:g}: it was stopped or"
                " starved"
            )
        if local := self.errors.get(ERROR_NAMES[LOCAL]):
            reasons.append(f"the generator had no descriptor, port or connection left for {local} requests")
        return reasons

    @property
    def is_valid(self) -> bool:
        """Did the generator send on time?"""
        return not self.invalid_because

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "valid": self.is_valid}

    def __str__(self) -> str:
        errors = ", ".join(f"{count} {name}" for name, count in self.errors.items()) or "none"
        lines = [
            f"Requests   {self.requests} in {self.seconds:.1f} s, {self.requests / max(self.seconds, 1e-9):.1f}/s;"
            f" {self.answered} answered",
            f"Errors     {errors}",
            f"FCT ms     mean {self.mean:.2f}  p50 {self.p50:.2f}  p90 {self.p90:.2f}  p99 {self.p99:.2f}"
            f"  p99.9 {self.p999:.2f}  max {self.max:.2f}",
            f"Late ms    p50 {self.late_p50:.2f}  p99 {self.late_p99:.2f}  max {self.late_max:.2f}",
        ]
        lines += [f"INVALID    {reason}" for reason in self.invalid_because]
        return "\n".join(lines)


def summarize(
    result: Result,
    *,
    after_s: float = 0.0,
    counts_waiting: bool = False,
    late_limit_ms: float = LATE_LIMIT_MS,
    late_max_limit_ms: float = LATE_MAX_LIMIT_MS,
) -> Summary:
    """Sum up the requests scheduled after `after_s` (the warm-up).

    counts_waiting: a request that had no answer when the run was ended counts with the age it had reached, a lower
    bound; to leave it out would flatter whoever made it wait.
    """
    scheduled = result.records[result.records["scheduled_s"] >= after_s]
    sent = records = scheduled[~np.isnan(scheduled["sent_s"])]
    good = records[is_good(records)]
    fct = (good["done_s"] - good["scheduled_s"]) * 1e3
    waiting = sent[sent["error"] == ABORTED]
    if counts_waiting:
        fct = np.concatenate([fct, (result.ended_s - waiting["scheduled_s"]) * 1e3])
        records = records[records["error"] != ABORTED]
    late = (sent["sent_s"] - sent["scheduled_s"]) * 1e3
    errors = Counter(ERROR_NAMES[code] for code in records["error"].tolist() if code != OK)
    bad = records[(records["error"] == OK) & ~is_good(records)]
    errors.update(f"status {status}" for status in bad["status"].tolist())
    least, p50, p90, p95, p99, p999, largest = _percentiles(fct, (0, 50, 90, 95, 99, 99.9, 100))
    late_p50, late_p99, late_max = _percentiles(late, (50, 99, 100))
    return Summary(
        requests=len(records) + (len(waiting) if counts_waiting else 0),
        unanswered=len(waiting),
        answered=len(good),
        seconds=float(sent["scheduled_s"][-1]) - after_s if len(sent) else 0.0,
        mean=float(fct.mean()) if len(fct) else float("nan"),
        p50=p50,
        p90=p90,
        p99=p99,
        p999=p999,
        max=largest,
        late_p50=late_p50,
        late_p99=late_p99,
        late_max=late_max,
        errors=dict(errors.most_common()),
        unsent=len(scheduled) - len(sent),
        min=least,
        p95=p95,
        stall_max=result.stall_s * 1e3,
        cpu_us=result.cpu_s / len(sent) * 1e6 if len(sent) else math.nan,
        late_limit=late_limit_ms,
        late_max_limit=late_max_limit_ms,
    )


def _percentiles(values: Floats, which: tuple[float, ...]) -> list[float]:
    if not len(values):
        return [float("nan")] * len(which)
    found: list[float] = np.percentile(values, which).tolist()
    return found


def columns(result: Result) -> dict[str, NDArray[Any]]:
    """The records of what was sent, a column each. Times in seconds from the start, NaN: never happened."""
    sent = result.records[~np.isnan(result.records["sent_s"])]
    good = is_good(sent)
    found: dict[str, NDArray[Any]] = {
        name: sent[name] for name in ("scheduled_s", "sent_s", "first_byte_s", "done_s", "demand_ms")
    }
    found["fct_ms"] = np.where(good, (sent["done_s"] - sent["scheduled_s"]) * 1e3, np.nan)
    found["late_ms"] = (sent["sent_s"] - sent["scheduled_s"]) * 1e3
    found |= {name: sent[name] for name in ("wait_ms", "service_ms", "body_bytes", "status")}
    found["error"] = np.array(ERROR_NAMES)[sent["error"]]
    names = np.array([*result.servers, ""])
    found["server"] = names[np.minimum(sent["server"], len(result.servers))]
    return found


def write_csv(result: Result, path: Path, more: Mapping[str, NDArray[Any]] | None = None) -> None:
    """One line a request that was sent; empty: unknown, or never happened. more: columns of one's own."""
    table = {**columns(result), **(more or {})}
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(table)
        rows.writerows(zip(*(_cells(values) for values in table.values()), strict=True))


def _cells(values: NDArray[Any]) -> list[Any]:
    if values.dtype.kind != "f":
        return values.tolist()  # type: ignore[no-any-return]
    return ["" if value != value else f"{value:.6f}" for value in values.tolist()]
