"""What a comparison came to, as one document: figures, paired ratios, ranks, and whether the scenario's aim was met."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from controlplane.table import percent
from testbed.compare import machine
from testbed.compare.figures import TIMES, Figures, Ratio, figures_of, paired, references, times_of, together, usable
from testbed.compare.runner import CENTRAL, CLAIRVOYANT, OVER_PATH, Comparison
from testbed.compare.scenario import Scenario
from testbed.compare.variant import OURS, Variant

LEVEL = 1.02  # what counts as level with the best where all servers are equal


def document(name: str, found: Comparison) -> dict[str, Any]:
    scenario = found.scenario
    fastest = max((group.speed for group in scenario.servers), default=1.0)
    measured = [one for one in scenario.variants if found.of(one.name)]
    base = next((one for one in measured if one.program == "vickrey"), measured[0] if measured else None)
    central = references(found, CENTRAL)
    balancers: list[dict[str, Any]] = []
    for one in measured:
        runs = usable(found, one.name)
        figures = together([figures_of(run, fastest) for run in runs])
        against = paired(runs, usable(found, base.name)) if base is not None else {}
        to_central = paired(runs, central) if central else {}
        balancers.append(
            {
                "name": one.name,
                "program": one.program,
                "told": one.is_told,
                **figures.as_dict(),
                "to_base": {figure: ratio.as_dict() for figure, ratio in against.items()},
                "to_central": {figure: ratio.as_dict() for figure, ratio in to_central.items()},
                "utilisation": _utilisation(found, one),
                "kinds": _kinds(found, one),
                "rounds": [_round(run, fastest) for run in found.of(one.name)],
                "valid_rounds": sum(run.is_valid for run in found.of(one.name)),
            }
        )
    order = sorted(balancers, key=lambda one: one["mean"] or float("inf"))
    for rank, row in enumerate(order, 1):
        row["rank"] = rank
    return {
        "scenario": name,
        "title": scenario.title,
        "shows": scenario.shows,
        "aim": scenario.aim,
        "base": base.name if base else None,
        "settings": _settings(scenario),
        "machine": machine.describe(),
        "when": time.strftime("%Y-%m-%d %H:%M", time.localtime()),
        "busy": _most(found, "busy"),
        "others": _most(found, "others"),
        "servers": [{"name": spec.name, "speed": spec.speed, "workers": spec.workers} for spec in scenario.specs],
        "direct_overhead_ms": _median(found.overhead_ms),
        "service_late_ms": _median(found.service_late_ms),
        "balancers": balancers,
        "references": _references(found, fastest),
        "verdict": verdict(found, measured),
        "not_started": found.failed,
        "not_installed": found.absent,
        "notes": notes(found),
        "interrupted": found.interrupted,
    }


def _settings(scenario: Scenario) -> dict[str, Any]:
    plain = scenario.model_dump(exclude={"title", "shows", "aim", "variants", "servers"})
    return {key: value for key, value in plain.items() if value not in ((), {}, None)}


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None


def _most(found: Comparison, what: str) -> float | None:
    return max((getattr(run, what) for run in found.runs), default=None)


def _utilisation(found: Comparison, one: Variant) -> list[float | None]:
    """Busy share of each server's workers, mean over the rounds."""
    rows = [
        run.telemetry.utilisation(run.traffic.warmup_s, run.traffic.schedule.duration_s)
        for run in usable(found, one.name)
        if len(run.telemetry)
    ]
    return [None if x != x else round(x, 4) for x in np.mean(rows, axis=0).tolist()] if rows else []


def _kinds(found: Comparison, one: Variant) -> dict[str, dict[str, float]]:
    """Mean and p99 of each kind of requests, where there are several; milliseconds, mean over the rounds."""
    traffic = found.scenario.traffic
    if len(traffic) < 2:
        return {}
    table: dict[str, dict[str, float]] = {}
    for i, kind in enumerate(traffic):
        rounds = []
        for run in usable(found, one.name):
            times = times_of(run)
            mine = times.fct_ms[run.traffic.kind[times.index] == i]
            if len(mine):
                rounds.append((float(mine.mean()), float(np.percentile(mine, 99))))
        if rounds:
            mean, p99 = np.mean(rounds, axis=0).tolist()
            table[kind.name] = {"mean": mean, "p99": p99}
    return table


def _round(run: Any, fastest: float) -> dict[str, Any]:
    summary = run.summary
    return {
        "round": run.round,
        **figures_of(run, fastest).as_dict(),
        "late_p99_ms": summary.late_p99,
        "failures": summary.errors,
        "busy": run.busy,
        "others": run.others,
        "valid": run.is_valid,
        "invalid": run.invalid,
        "notes": run.notes,
    }


def _references(found: Comparison, fastest: float) -> list[dict[str, Any]]:
    rows = []
    for name in (CENTRAL, OVER_PATH, CLAIRVOYANT):
        rounds = references(found, name)
        if rounds:
            figures: Figures = together([figures_of(one, fastest) for one in rounds])
            rows.append(
                {"name": name, **figures.as_dict(), "to_central": _as_dicts(paired(rounds, references(found, CENTRAL)))}
            )
    return rows


def _as_dicts(ratios: dict[str, Ratio]) -> dict[str, Any]:
    return {name: ratio.as_dict() for name, ratio in ratios.items()}


def notes(found: Comparison) -> list[str]:
    """What a reader must know before believing a figure."""
    lines = list(found.notes)
    busy, others = _most(found, "busy"), _most(found, "others")
    if busy is not None and busy > machine.BUSY_LIMIT:
        lines.append(
            f"The machine was busy: up to {percent(busy)} of its CPU during a run (limit"
            f" {percent(machine.BUSY_LIMIT)}). Queues of the CPU were measured beside those of the servers."
        )
    if others is not None and others > machine.OTHERS_LIMIT:
        lines.append(
            f"The machine was not ours alone: others used up to {percent(others)} of its CPU during a run"
            f" (limit {percent(machine.OTHERS_LIMIT)}). What they did while one"
            " balancer ran is in its figures, and in ratios to them."
        )
    lines += [
        f"INVALID: {run.variant}, round {run.round + 1}: {'; '.join(run.invalid)}" for run in found.runs if run.invalid
    ]
    if found.interrupted:
        lines.append("Interrupted: what was finished by then; figures are of the rounds that all went through, if any.")
    lines += [f"Not installed: {name}: {why}" for name, why in found.absent.items()]
    lines += [f"Did not start: {name}: {why}" for name, why in found.failed.items()]
    return lines


def verdict(found: Comparison, measured: list[Variant]) -> list[dict[str, Any]]:
    """`vickrey adaptive` against the best-mean setting of every competitor: told nothing, and told the truth.

    ratio: ours / theirs. `word`: ahead or behind where the interval excludes 1, else level; unknown where there is
    none. `meets`: the scenario's aim, judged by the ratio itself; None where the aim says nothing or
    there is no ratio.
    """
    ours = next((one for one in measured if one.name == OURS), None)
    ours = ours or next((one for one in measured if one.program == "vickrey"), None)
    if ours is None:
        return []
    rows = []
    for program in dict.fromkeys(one.program for one in measured if one.program != "vickrey"):
        for told in (False, True):
            rivals = [one for one in measured if one.program == program and one.is_told == told]
            if not rivals:
                continue
            best = min(rivals, key=lambda one: together([figures_of(r, 1.0) for r in usable(found, one.name)]).mean)
            ratios = paired(usable(found, ours.name), usable(found, best.name))
            for figure in ("mean", "p99"):
                rows.append(
                    {
                        "ours": ours.name,
                        "theirs": best.name,
                        "told": told,
                        "figure": figure,
                        **ratios[figure].as_dict(),
                        "word": _word(ratios[figure]),
                        "meets": _meets(found.scenario.aim, figure, ratios[figure]),
                    }
                )
    return rows


def _word(ratio: Ratio) -> str:
    if ratio.low != ratio.low:
        return "unknown"
    if not ratio.is_clear:
        return "level"
    return "ahead" if ratio.ratio < 1 else "behind"


def _meets(aim: str, figure: str, ratio: Ratio) -> bool | None:
    if ratio.ratio != ratio.ratio:  # no round that both have
        return None
    if aim == "ahead":
        return ratio.ratio < 1
    if aim == "level" and figure == "mean":
        return ratio.ratio <= LEVEL
    return None


def ratio_of(row: dict[str, Any]) -> Ratio:
    """A ratio of the document back as one."""
    nan = float("nan")
    return Ratio(*(nan if row.get(name) is None else row[name] for name in ("ratio", "low", "high")))


FIGURES = TIMES
