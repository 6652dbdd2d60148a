"""Everything that an evaluation found, as one document: the same bytes for the same suite, seeds and policies.

Times are seconds. `half` is half the width of a 95 % confidence interval over the seeds. A candidate's `against` has,
by heuristic and metric, the paired ratio of its figure over the heuristic's: value, low and high of the two-sided
interval, upper of the one-sided bound, p of being better by chance. No clock and no timing is in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.evaluation.gate import MARGIN, Cell, CellVerdict, Verdict, judge
from controlplane.evaluation.measure import Failure, Outcomes, lower_bound
from controlplane.evaluation.rivals import ESTIMATORS
from controlplane.evaluation.statistics import Ratio, paired_ratio
from controlplane.evaluation.suite import Entry, Suite
from controlplane.evaluation.tuning import Tuned
from controlplane.simulation.intervals import Estimate, estimate
from controlplane.simulation.runs import Run
from controlplane.simulation.scenario import Policy

METRICS = ("mean", "p99", "slowdown_p99")
FIGURES = ("mean", "p50", "p90", "p99", "p999", "slowdown_p99")
FORMAT = 1

REFERENCE_TITLES = {
    "central-queue": "central queue",
    "least-work-left": "least work left",
    "srpt": "SRPT floor",
    "birth-death": "birth-death bound",
}


@dataclass(frozen=True)
class Field:
    """Who was compared: candidates in all scenarios, rivals (as tuned) by scenario."""

    candidates: Sequence[Policy]
    rivals: Mapping[str, Sequence[Policy]]


def document(suite: Suite, field: Field, tuned: Tuned, outcomes: Outcomes, metric: str, quick: bool) -> dict[str, Any]:
    """Return the document of an evaluation. metric: what the gate judges by, one of METRICS."""
    scenarios, cells = [], {policy.title: list[Cell]() for policy in field.candidates}
    for entry in suite.entries:
        view = _View(suite, entry, field.rivals[entry.name], outcomes, metric)
        for policy in field.candidates:
            cells[policy.title].append(view.cell(policy))
        scenarios.append(view.document(field.candidates))
    verdicts = {title: judge(found) for title, found in cells.items()}
    return {
        "format": FORMAT,
        "suite": suite.name,
        "title": suite.title,
        "digest": suite.digest(),
        "quick": quick,
        "seeds": list(suite.seeds),
        "metric": metric,
        "margin": MARGIN,
        "candidates": [_described(policy) for policy in field.candidates],
        "tuning": {"seeds": list(suite.tuning_seeds), "families": _families(tuned)},
        "gate": [_verdict(title, verdict) for title, verdict in verdicts.items()],
        "scenarios": scenarios,
        "runs": _runs(outcomes),
    }


def _described(policy: Policy) -> dict[str, Any]:
    return {"policy": policy.title, "spec": policy.spec, "weights": policy.weights, "reserve": policy.reserve}


def _families(tuned: Tuned) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for (family, rival), options in sorted(tuned.items()):
        found.setdefault(family, {})[rival] = options
    return found


class _View:
    """One scenario's runs."""

    def __init__(self, suite: Suite, entry: Entry, rivals: Sequence[Policy], outcomes: Outcomes, metric: str) -> None:
        self.suite, self.entry, self.rivals, self.outcomes, self.metric = suite, entry, rivals, outcomes, metric

    def runs(self, title: str) -> list[Run] | Failure:
        """Return a policy's runs, seed by seed; or why there are none."""
        found = [self.outcomes[self.entry.name, title, seed] for seed in self.suite.seeds]
        failed = [run for run in found if isinstance(run, Failure)]
        return failed[0] if failed else [run for run in found if isinstance(run, Run)]

    def values(self, title: str, figure: str) -> list[float]:
        runs = self.runs(title)
        return [math.nan] * len(self.suite.seeds) if isinstance(runs, Failure) else [r.figures[figure] for r in runs]

    def phase(self, title: str, name: str) -> list[float]:
        runs = self.runs(title)
        i = [phase.name for phase in self.entry.scenario.phases].index(name)
        return [math.nan] * len(self.suite.seeds) if isinstance(runs, Failure) else [r.phases[i]["mean"] for r in runs]

    def lost(self, title: str) -> NDArray[np.float64] | None:
        """Return the share of each run's flows that were rejected or lost, (seeds,)."""
        runs = self.runs(title)
        if isinstance(runs, Failure):
            return None
        return np.array([(r.figures["rejected"] + r.figures["failed"]) / max(r.figures["flows"], 1.0) for r in runs])

    def against(self, policy: Policy) -> list[Policy]:
        """Return the heuristics that a policy meets: not itself."""
        return [rival for rival in self.rivals if rival.title != policy.title]

    def best(self, figure: str, policy: Policy | None = None) -> str | None:
        """Return the heuristic (of those that the policy meets) with the least figure, None where none has one."""
        met = self.rivals if policy is None else self.against(policy)
        known = {rival.title: float(np.mean(np.log(self.values(rival.title, figure)))) for rival in met}
        known = {title: value for title, value in known.items() if math.isfinite(value)}
        return min(known, key=known.__getitem__) if known else None

    def cell(self, policy: Policy) -> Cell:
        """Return what the gate judges by."""
        title, best = policy.title, self.best(self.metric, policy)
        runs = self.runs(title)
        mine = self.values(title, self.metric)
        problem = runs.error if isinstance(runs, Failure) else ""
        if not problem and not np.isfinite(mine).all():
            problem = "no flow was completed"
        recovery = {}
        if self.entry.recovery is not None:
            here = [rival.title for rival in self.against(policy) if rival.title in ESTIMATORS]
            mean = self.phase(title, self.entry.recovery)
            recovery = {name: paired_ratio(mean, self.phase(name, self.entry.recovery)) for name in here}
        return Cell(
            self.entry.name,
            {rival.title: paired_ratio(mine, self.values(rival.title, self.metric)) for rival in self.against(policy)},
            lost=self.lost(title),
            lost_best=None if best is None else self.lost(best),
            recovery=recovery,
            problem=problem,
        )

    def document(self, candidates: Sequence[Policy]) -> dict[str, Any]:
        entry = self.entry
        world = entry.scenario.world(self.suite.seeds[0])
        rows = [self._row(policy, "candidate") for policy in candidates]
        titles = [policy.title for policy in candidates]
        rows += [self._row(policy, "heuristic") for policy in self.rivals if policy.title not in titles]
        for policy, row in zip(candidates, rows, strict=False):
            row["best"] = {metric: self.best(metric, policy) for metric in METRICS}
            row["against"] = {
                rival.title: {
                    metric: _ratio(paired_ratio(self.values(policy.title, metric), self.values(rival.title, metric)))
                    for metric in METRICS
                }
                for rival in self.against(policy)
            }
        return {
            "scenario": entry.name,
            "family": entry.family,
            "title": entry.scenario.title,
            "servers": len(world.servers),
            "balancers": world.balancers,
            "load": world.load,
            "phases": [phase.name for phase in entry.scenario.phases],
            "recovery": entry.recovery,
            "best": {metric: self.best(metric) for metric in METRICS},
            "policies": rows,
            "references": self._references(),
        }

    def _row(self, policy: Policy, role: str) -> dict[str, Any]:
        title, runs = policy.title, self.runs(policy.title)
        row: dict[str, Any] = {"role": role, **_described(policy)}
        if isinstance(runs, Failure):
            return row | {"error": runs.error}
        row |= {figure: _estimate(self.values(title, figure)) for figure in FIGURES}
        lost = self.lost(title)
        row["lost"] = None if lost is None else float(lost.mean())
        row["phases"] = {p.name: _estimate(self.phase(title, p.name)) for p in entry_phases(self.entry)}
        row["course"] = _listed([run.course for run in runs])
        if self.outcomes_of("central-queue"):
            row["gap"] = _ratio(paired_ratio(self.values(title, "mean"), self.values("central-queue", "mean")))
        return row

    def outcomes_of(self, title: str) -> bool:
        return (self.entry.name, title, self.suite.seeds[0]) in self.outcomes

    def _references(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self.entry.references:
            if name == "birth-death":
                found[name] = {"mean": {"mean": lower_bound(self.entry)}}
            elif self.outcomes_of(name):
                figures = {figure: _estimate(self.values(name, figure)) for figure in FIGURES}
                found[name] = figures
        return found


def entry_phases(entry: Entry) -> Sequence[Any]:
    return entry.scenario.phases


def _listed(courses: Sequence[NDArray[np.float64]]) -> list[float | None]:
    return [float(x) if math.isfinite(x) else None for x in np.array(courses).mean(axis=0)]


def _estimate(values: Sequence[float]) -> dict[str, float | None]:
    found: Estimate = estimate(values)
    plain: dict[str, float | None] = {"mean": _finite(found.mean)}
    return plain | ({"half": found.half} if math.isfinite(found.half) else {})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ratio(ratio: Ratio) -> dict[str, float | None]:
    return {name: _finite(getattr(ratio, name)) for name in ("value", "low", "high", "upper")} | {
        "p_better": _finite(ratio.better)
    }


def _verdict(title: str, verdict: Verdict) -> dict[str, Any]:
    return {
        "policy": title,
        "passed": verdict.passed,
        "reasons": list(verdict.reasons),
        "better": list(verdict.better),
        "scenarios": [_cell_verdict(cell) for cell in verdict.cells],
    }


def _cell_verdict(cell: CellVerdict) -> dict[str, Any]:
    ratio = {} if cell.ratio is None else _ratio(cell.ratio)
    return {
        "scenario": cell.scenario,
        "verdict": cell.word,
        "against": cell.rival,
        **ratio,
        "p": _finite(cell.p),
        "p_holm": _finite(cell.p_adjusted),
    }


def _runs(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Return a row a run, for the CSV; no timings, so that the same runs make the same rows."""
    rows = []
    for (scenario, policy, seed), run in sorted(outcomes.items()):
        row: dict[str, Any] = {"scenario": scenario, "policy": policy, "seed": seed}
        if isinstance(run, Failure):
            rows.append(row | {"error": run.error})
            continue
        figures = {name: value for name, value in run.figures.items() if name != "batch_error"}
        rows.append(row | {name: _finite(value) for name, value in figures.items()})
    return rows


def summary(found: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """Return what of a document belongs in the manifest of a policy: the gate's verdict and a line a scenario."""
    gate = next(row for row in found["gate"] if row["policy"] == policy)
    rows = []
    for scenario, verdict in zip(found["scenarios"], gate["scenarios"], strict=True):
        row = next(r for r in scenario["policies"] if r["policy"] == policy and r["role"] == "candidate")
        best = row["best"]["mean"]
        against = row["against"].get(best, {}).get("mean", {})
        rows.append(
            {
                "scenario": scenario["scenario"],
                "mean": row.get("mean", {}).get("mean"),
                "best_heuristic": best,
                "ratio": against.get("value"),
                "low": against.get("low"),
                "high": against.get("high"),
                "verdict": verdict["verdict"],
            }
        )
    return {
        "suite": found["suite"],
        "digest": found["digest"],
        "seeds": found["seeds"],
        "metric": found["metric"],
        "margin": found["margin"],
        "gate": "passed" if gate["passed"] else "failed",
        "reasons": gate["reasons"],
        "better": gate["better"],
        "scenarios": rows,
    }
