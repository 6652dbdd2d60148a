"""What a run of the generator amounts to: percentiles, errors, and whether the generator itself kept up."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from testbed.demand import Floats
from testbed.load.connection import ABORTED, ERROR_NAMES, OK
from testbed.load.generator import Result

LATE_LIMIT_MS = 5.0  # p99 of the generator's own lateness above which a run proves nothing


@dataclass(frozen=True)
class Summary:
    """Flow completion times in milliseconds, of the requests that were answered 200; NaN when there were none."""

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

    @property
    def is_valid(self) -> bool:
        """Did the generator send on time?"""
        return self.late_p99 <= LATE_LIMIT_MS

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "valid": self.is_valid}

    def __str__(self) -> str:
        errors = ", ".join(f"{count} {name}" for name, count in self.errors.items()) or "none"
        lines = [
            f"Requests   {self.requests} in {self.seconds:.1f} s, {self.requests / max(self.seconds, 1e-9):.1f}/s;"
            f" {self.answered} answered 200",
            f"Errors     {errors}",
            f"FCT ms     mean {self.mean:.2f}  p50 {self.p50:.2f}  p90 {self.p90:.2f}  p99 {self.p99:.2f}"
            f"  p99.9 {self.p999:.2f}  max {self.max:.2f}",
            f"Late ms    p50 {self.late_p50:.2f}  p99 {self.late_p99:.2f}  max {self.late_max:.2f}",
        ]
        if not self.is_valid:
            lines.append(
                f"INVALID    the generator was late by more than {LATE_LIMIT_MS:g} ms (p99): too little CPU for it"
            )
        return "\n".join(lines)


def summarize(result: Result, *, after_s: float = 0.0, counts_waiting: bool = False) -> Summary:
    """Sum up the requests scheduled after `after_s` (the warm-up).

    counts_waiting: a request that had no answer when the run was ended counts with the age it had reached, a lower
    bound; to leave it out would flatter whoever made it wait.
    """
    records = result.records[result.records["scheduled_s"] >= after_s]
    good = records[(records["error"] == OK) & (records["status"] == 200)]
    fct = (good["done_s"] - good["scheduled_s"]) * 1e3
    sent = records[~np.isnan(records["sent_s"])]
    waiting = sent[sent["error"] == ABORTED]
    if counts_waiting:
        fct = np.concatenate([fct, (result.ended_s - waiting["scheduled_s"]) * 1e3])
        records = records[records["error"] != ABORTED]
    late = (sent["sent_s"] - sent["scheduled_s"]) * 1e3
    errors = Counter(ERROR_NAMES[code] for code in records["error"].tolist() if code != OK)
    errors.update(f"status {status}" for status in records["status"].tolist() if status not in (0, 200))
    p50, p90, p99, p999, largest = _percentiles(fct, (50, 90, 99, 99.9, 100))
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
    )


def _percentiles(values: Floats, which: tuple[float, ...]) -> list[float]:
    if not len(values):
        return [float("nan")] * len(which)
    found: list[float] = np.percentile(values, which).tolist()
    return found


def write_csv(result: Result, path: Path) -> None:
    """One line a request; times in seconds from the start of the run."""
    names = [name for name in (result.records.dtype.names or ()) if name not in ("error", "server")]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*names, "error", "server"])
        for record in result.records:
            server = int(record["server"])
            rows.writerow(
                [
                    *(
                        f"{value:.6f}" if isinstance(value, float) else value
                        for value in (record[n].item() for n in names)
                    ),
                    ERROR_NAMES[int(record["error"])],
                    result.servers[server] if server < len(result.servers) else "",
                ]
            )
