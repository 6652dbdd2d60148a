"""An evaluation's document as tables for a terminal: a row a scenario for each candidate, and the gate's reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from controlplane.evaluation.outcome import REFERENCE_TITLES
from controlplane.table import NOTHING

Table = tuple[list[str], list[list[str]]]


def heading(found: Mapping[str, Any]) -> str:
    seeds, scenarios = len(found["seeds"]), len(found["scenarios"])
    quick = ", a quick look" if found["quick"] else ""
    size = f"{scenarios} scenario{'s' * (scenarios != 1)} × {seeds} paired seed{'s' * (seeds != 1)}{quick}"
    return f"{found['title']}\n{size}; ratios of completion times with 95 % intervals"


def row_of(scenario: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """Return a policy's row of a scenario; candidates come first."""
    return next((row for row in scenario["policies"] if row["policy"] == policy), {})


def candidate_table(found: Mapping[str, Any], policy: str) -> Table:
    """Return a row a scenario: the policy beside the heuristic that is best on the gate's metric there."""
    gate = next(row for row in found["gate"] if row["policy"] == policy)
    columns = ["SCENARIO", "BEST HEURISTIC", ">ITS MEAN", ">MEAN", ">MEAN VS BEST", ">P99 VS BEST"]
    columns += [">SLOWDOWN P99", ">VS ADAPTIVE", ">VS CENTRAL QUEUE", "VERDICT"]
    rows = []
    for scenario, verdict in zip(found["scenarios"], gate["scenarios"], strict=True):
        row = row_of(scenario, policy)
        best, against = row["best"][found["metric"]], row["against"]
        versus = against.get(best, {})
        rows.append(
            [
                scenario["scenario"],
                best or NOTHING,
                milliseconds(row_of(scenario, best).get("mean")) if best else NOTHING,
                milliseconds(row.get("mean")),
                *(percent(versus.get(metric)) for metric in ("mean", "p99", "slowdown_p99")),
                percent(against.get("adaptive", {}).get("mean")),
                percent(row.get("gap")),
                verdict["verdict"],
            ]
        )
    if all(row[7] == NOTHING for row in rows):
        columns.pop(7)
        rows = [[*row[:7], *row[8:]] for row in rows]
    return columns, rows


def recovery_table(found: Mapping[str, Any]) -> Table | None:
    """Return the mean of the phase after a change, by policy; None where no scenario has one."""
    scenarios = [scenario for scenario in found["scenarios"] if scenario["recovery"]]
    if not scenarios:
        return None
    columns = ["POLICY", *(f">{scenario['scenario'].upper()}" for scenario in scenarios)]
    names = [row["policy"] for row in scenarios[0]["policies"]]
    rows = []
    for name in names:
        cells = [row_of(s, name).get("phases", {}).get(s["recovery"]) for s in scenarios]
        rows.append([name, *(milliseconds(cell) for cell in cells)])
    return columns, rows


def reference_table(found: Mapping[str, Any]) -> Table:
    """Return the mean of each reference and of the best heuristic, a row a scenario."""
    columns = ["SCENARIO", ">BEST HEURISTIC", *(f">{title.upper()}" for title in REFERENCE_TITLES.values())]
    rows = []
    for scenario in found["scenarios"]:
        best = scenario["best"]["mean"]
        cells = [row_of(scenario, best).get("mean") if best else None]
        cells += [scenario["references"].get(name, {}).get("mean") for name in REFERENCE_TITLES]
        rows.append([scenario["scenario"], *(milliseconds(cell) for cell in cells)])
    return columns, rows


def tuning_table(found: Mapping[str, Any]) -> Table:
    """Return what was chosen for each family."""
    families = found["tuning"]["families"]
    names = sorted({name for chosen in families.values() for name in chosen})
    rows = [
        [family, *(" ".join(f"{k}={v:g}" for k, v in chosen[n].items()) if n in chosen else NOTHING for n in names)]
        for family, chosen in families.items()
    ]
    return ["FAMILY", *(name.upper() for name in names)], rows


def verdict_lines(gate: Mapping[str, Any]) -> list[str]:
    """Return the gate's decision on one candidate, and its reasons."""
    if gate["passed"]:
        return [f"{gate['policy']}: passes the gate; better in {', '.join(gate['better'])}"]
    return [f"{gate['policy']}: does not pass the gate", *(f"  {reason}" for reason in gate["reasons"])]


def milliseconds(value: Mapping[str, float] | None) -> str:
    if not value or value.get("mean") is None:
        return NOTHING
    mean = value["mean"] * 1e3
    digits = 2 if mean < 10 else 1 if mean < 1000 else 0
    half = f" ±{value['half'] * 1e3:,.{digits}f}" if "half" in value else ""
    return f"{mean:,.{digits}f}{half}"


def percent(ratio: Mapping[str, float | None] | None) -> str:
    """Return a paired ratio as a difference with its interval: +1.2% [+0.4, +2.0]."""
    if not ratio or ratio.get("value") is None:
        return NOTHING
    value, low, high = (
        None if ratio.get(n) is None else 100 * (_number(ratio[n]) - 1) for n in ("value", "low", "high")
    )
    text = _signed(value) + "%"
    return text if low is None or high is None else f"{text} [{_signed(low)}, {_signed(high)}]"


def _number(value: float | None) -> float:
    return 0.0 if value is None else value


def _signed(percentage: float | None) -> str:
    if percentage is None:
        return NOTHING
    if abs(percentage) >= 1000:
        return f"{percentage:+,.0f}"
    return f"{percentage:+.1f}" if abs(percentage) >= 9.95 else f"{percentage:+.2f}"


def failures(found: Mapping[str, Any]) -> Sequence[str]:
    """Return a line for each policy that raised."""
    return [
        f"{scenario['scenario']}: {row['policy']}: {row['error']}"
        for scenario in found["scenarios"]
        for row in scenario["policies"]
        if "error" in row
    ]
