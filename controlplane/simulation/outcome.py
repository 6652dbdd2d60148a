"""Everything that the runs of a scenario found, as one document (for --json and the report), and its tables.

Times in the document are seconds. `half` is half the width of the 95 % confidence interval over the seeds, absent
with a single seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.config_values import format_duration
from controlplane.simulation.intervals import Estimate, estimate, relative
from controlplane.simulation.runs import PARTS, REFERENCE, TAIL_SHARES, Run, bound
from controlplane.simulation.scenario import RateEvent, Scenario, length
from controlplane.table import NOTHING

TIMES = ("mean", "p50", "p90", "p99", "p999")
FIGURES = (*TIMES, "slowdown", "slowdown_p99", "jain", "rejected", "failed", "open", "flows")

REFERENCE_TITLES = {
    "central-queue": "central queue",
    "least-work-left": "least work left",
    "srpt": "SRPT floor",
    "birth-death": "birth-death bound",
}


def document(name: str, scenario: Scenario, runs: Sequence[Run]) -> dict[str, Any]:
    """Return the document of all runs of a scenario."""
    runs = sorted(runs, key=lambda run: (run.policy, run.seed))
    first = _of(runs, 0)
    reference = _reference_means(scenario, runs)
    rows = []
    for i, policy in enumerate(scenario.policies):
        mine = _of(runs, i)
        told = {"spec": policy.spec, "weights": policy.weights, "reserve": policy.reserve}
        row = {"policy": policy.title, **told, **_row(scenario, mine)}
        if i:
            row["against_first"] = _plain(relative(_values(mine, "mean"), _values(first, "mean")))
        if reference is not None:
            row["gap"] = _plain(relative(_values(mine, "mean"), reference))
        rows.append(row)
    world = scenario.world(scenario.seeds[0])
    found: dict[str, Any] = {
        "scenario": name,
        "title": scenario.title,
        "description": " ".join(scenario.description.split()),
        "load": world.load,
        "rate": world.arrivals.mean_rate,
        "balancers": scenario.balancers.count,
        "seeds": list(scenario.seeds),
        "flows": scenario.flows if scenario.flows is not None else world.flows,
        "duration": scenario.duration,
        "warmup": world.warmup,
        "length": length(world),
        "events": [_event(scenario, event) for event in scenario.events],
        "servers": [asdict(server) for server in world.servers],
        "reference": _reference_row(scenario, runs, reference),
        "policies": rows,
        "tail_shares": TAIL_SHARES.tolist(),
        "course_times": ((np.arange(PARTS) + 0.5) * length(world) / PARTS).tolist(),
        "runs": [
            {"policy": _title(scenario, run.policy), "seed": run.seed, "cpu_s": run.cpu_s, **_finite(run.figures)}
            for run in runs
        ],
    }
    return found


def _title(scenario: Scenario, number: int) -> str:
    return REFERENCE_TITLES[scenario.reference] if number == REFERENCE else scenario.policies[number].title


def _of(runs: Sequence[Run], policy: int) -> list[Run]:
    return [run for run in runs if run.policy == policy]


def _values(runs: Sequence[Run], figure: str) -> list[float]:
    return [run.figures[figure] for run in runs]


def _reference_means(scenario: Scenario, runs: Sequence[Run]) -> list[float] | None:
    """Return the reference's mean for each seed, None where there is no reference."""
    if scenario.reference == "none":
        return None
    if scenario.reference == "birth-death":
        return [bound(scenario)] * len(scenario.seeds)
    return _values(_of(runs, REFERENCE), "mean")


def _reference_row(scenario: Scenario, runs: Sequence[Run], means: Sequence[float] | None) -> dict[str, Any] | None:
    if means is None:
        return None
    title = REFERENCE_TITLES[scenario.reference]
    if scenario.reference == "birth-death":
        return {"policy": title, "mean": {"mean": means[0]}, "phases": {}}
    return {"policy": title, **_row(scenario, _of(runs, REFERENCE))}


def _row(scenario: Scenario, runs: Sequence[Run]) -> dict[str, Any]:
    """Return the figures of one policy."""
    row: dict[str, Any] = {name: _plain(estimate(_values(runs, name))) for name in FIGURES if name in runs[0].figures}
    if len(runs) == 1 and "batch_error" in runs[0].figures:
        # One seed tells no spread between seeds; means of batches in a row do, of the mean alone.
        row["mean"] = _plain(Estimate(runs[0].figures["mean"], runs[0].figures["batch_error"]))
    row["phases"] = {
        phase.name: {name: _plain(estimate([run.phases[i][name] for run in runs])) for name in TIMES}
        for i, phase in enumerate(scenario.phases)
    }
    row["classes"] = {
        sla: {name: _plain(estimate([run.classes.get(sla, {}).get(name, math.nan) for run in runs])) for name in TIMES}
        for sla in runs[0].classes
    }
    row["tail"] = _listed(np.array([run.tail for run in runs]))
    row["course"] = _listed(np.array([run.course for run in runs]))
    row["utilisation"] = _listed(np.array([run.utilisation for run in runs]))
    return row


def _listed(rows: NDArray[np.float64]) -> list[float | None]:
    """Return the mean over the rows, None where one of them has nothing."""
    return [float(x) if math.isfinite(x) else None for x in rows.mean(axis=0)]


def _plain(value: Estimate) -> dict[str, float | None]:
    plain = {"mean": value.mean if math.isfinite(value.mean) else None}
    return plain | ({"half": value.half} if math.isfinite(value.half) else {})


def _finite(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in figures.items() if name != "batch_error"}


def _event(scenario: Scenario, event: Any) -> dict[str, Any]:
    plain: dict[str, Any] = event.model_dump()
    if not isinstance(event, RateEvent):
        plain["servers"] = scenario.slots_of(event.server)
    return plain | {"at": event.at}


# The terminal.


def heading(found: dict[str, Any]) -> str:
    """Return what was simulated, in one or two lines."""
    servers, seeds = found["servers"], len(found["seeds"])
    runs = f"{found['flows']:,} flows" if found["flows"] else format_duration(found["duration"])
    by = f", {found['balancers']} balancers" if found["balancers"] > 1 else ""
    world = f"{len(servers)} servers{by}, load {found['load']:.2f}: {runs} × {seeds} seed{'s' * (seeds != 1)}"
    return f"{found['title'] or found['scenario']}\n{world}; completion times in milliseconds ± 95 %"


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the main table."""
    every = [*found["policies"], *([found["reference"]] if found["reference"] else [])]
    lost = any(row.get(name, {}).get("mean") for name in ("failed", "rejected") for row in every)
    against = f">VS {found['policies'][0]['policy'].upper()}" if len(found["policies"]) > 1 else ""
    columns = ["POLICY", ">MEAN", against, ">GAP" if found["reference"] else ""]
    columns += [">P50", ">P90", ">P99", ">P99.9", ">SLOWDOWN P99", ">JAIN", ">REJECTED", ">FAILED" if lost else ""]
    rows = []
    for row in every:
        mean, *quantiles = (_milliseconds(row.get(name)) for name in TIMES)
        cells = [row["policy"], mean, _percent(row.get("against_first")), _percent(row.get("gap")), *quantiles]
        cells += [_number(row.get("slowdown_p99"), 1), _number(row.get("jain"), 3)]
        cells += [_count(row.get("rejected")), _count(row.get("failed"))]
        rows.append([cell for cell, column in zip(cells, columns, strict=True) if column])
    columns = [column for column in columns if column]
    return columns, rows


def phase_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Return columns and rows of the phases: mean and p99 of each; None where the scenario has none."""
    every = [*found["policies"], *([found["reference"]] if found["reference"] else [])]
    names = list(found["policies"][0]["phases"])
    if not names:
        return None
    columns = ["POLICY", *(f">{name.upper()}{suffix}" for name in names for suffix in ("", " P99"))]
    rows = [
        [row["policy"], *(_milliseconds(row["phases"].get(n, {}).get(f)) for n in names for f in ("mean", "p99"))]
        for row in every
    ]
    return columns, rows


def class_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Return columns and rows of the SLA classes: mean and p99 of each; None where all flows are of one class."""
    every = [*found["policies"], *([found["reference"]] if found["reference"] else [])]
    names = list(found["policies"][0]["classes"])
    if not names:
        return None
    columns = ["POLICY", *(f">{name.upper()}{suffix}" for name in names for suffix in ("", " P99"))]
    rows = [
        [
            row["policy"],
            *(_milliseconds(row.get("classes", {}).get(n, {}).get(f)) for n in names for f in ("mean", "p99")),
        ]
        for row in every
    ]
    return columns, rows


def _milliseconds(value: dict[str, float] | None) -> str:
    if not value or value["mean"] is None:
        return NOTHING
    mean = value["mean"] * 1e3
    return _number({name: x * 1e3 for name, x in value.items()}, 2 if mean < 10 else 1 if mean < 1000 else 0)


def _number(value: dict[str, float] | None, digits: int) -> str:
    if not value or value["mean"] is None:
        return NOTHING
    text = f"{value['mean']:,.{digits}f}"
    return text + (f" ±{value['half']:,.{digits}f}" if "half" in value else "")


def _count(value: dict[str, float] | None) -> str:
    """Return flows a run; without an interval where all seeds agree."""
    if not value or value["mean"] is None:
        return NOTHING
    return _number({"mean": value["mean"]} if not value.get("half") else value, 0)


def _percent(value: dict[str, float] | None) -> str:
    if not value or value["mean"] is None:
        return NOTHING
    text = f"{100 * value['mean']:+.1f}%"
    return text + (f" ±{100 * value['half']:.1f}" if "half" in value else "")
