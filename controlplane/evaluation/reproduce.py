"""`vickrey reproduce`: the papers' comparisons in the simulator, beside what they published.

Methods of ours and theirs meet the same queries in every case and seed. Learned methods come from policy files, as
`vickrey train` leaves them; one that is not there is "not trained", and no figure is made up for it. Those of the
papers have their action set, a weight of {1, 1.5, 2} for each server under the rule SED.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlplane import registry
from controlplane.evaluation.measure import Progress
from controlplane.evaluation.published import PAPERS, Case
from controlplane.evaluation.statistics import paired_ratio
from controlplane.evaluation.testbeds import CENTRAL_QUEUE, FIGURES, KINDS, Found, Trial, load_of, perform
from controlplane.simulation.intervals import estimate
from controlplane.simulation.pool import work_through
from controlplane.simulation.scenario import Policy

SEEDS: Final = tuple(range(101, 111))
TUNING_SEEDS: Final = (9001, 9002)
TUNED_C: Final = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5)
NOT_TRAINED: Final = "not trained"
# No bound on a step of the weights, no fading: as theirs act.
AS_PUBLISHED: Final = {"change": 100.0, "fade": False}
BASE: Final = "sed"  # what the others are set against


@dataclass(frozen=True)
class Method:
    """One line of the tables. agent: whose policy file it is; spec: a policy of ours."""

    key: str
    title: str
    spec: Mapping[str, Any] | None = None
    agent: str | None = None


METHODS: Final = (
    Method("ecmp", "ECMP", {"name": "wcmp", "weights": "equal"}),
    Method("wcmp", "WCMP", {"name": "wcmp"}),
    Method("awcmp", "AWCMP", {"name": "awcmp"}),
    Method("lsq", "LSQ", {"name": "lsq"}),
    Method("sed", "SED, true weights", {"name": "sed"}),
    Method("ssac", "RLB-SAC (S-SAC)", agent="ssac"),
    Method("isac", "I-SAC", agent="isac"),
    Method("qmix", "QMIX", agent="qmix"),
    Method("mpg", "MPG", agent="mpg"),
    Method("gsed", "gsed, tuned", {"name": "gsed"}),
    Method("adaptive", "adaptive, told nothing", {"name": "adaptive", "weights": "equal"}),
)
AGENTS: Final = tuple(method.agent for method in METHODS if method.agent is not None)


def methods() -> list[Method]:
    """Return all methods: theirs, ours, and the policies that come with Vickrey."""
    own = [
        Method(
            f"shipped:{name}",
            f"learned, {name}",
            {"name": "learned", "file": f"{registry.PREFIX}{name}", "weights": "equal"},
        )
        for name in registry.shipped()
    ]
    return [*METHODS, *own]


def policy_file(folder: Path | None, bed: str, agent: str) -> Path | None:
    """Return the file of a trained agent: FOLDER/BED-AGENT.safetensors, or FOLDER/AGENT.safetensors; None: none."""
    if folder is None:
        return None
    here = [folder / f"{bed}-{agent}{registry.SUFFIX}", folder / f"{agent}{registry.SUFFIX}"]
    return next((path for path in here if path.is_file()), None)


@dataclass(frozen=True)
class Request:
    """What is asked for. folder: of trained policies."""

    paper: str
    cases: Sequence[Case]
    seeds: Sequence[int]
    duration: float
    folder: Path | None = None


def reproduce(request: Request, workers: int, stage: Any) -> dict[str, Any]:
    """Return the document of a reproduction. Takes minutes."""
    tuned = _tune(request, workers, stage("tuning"))
    trials: list[Trial] = []
    missing: dict[tuple[str, str], str] = {}
    for case in request.cases:
        for method in methods():
            policy = _policy(method, case, tuned[case.name], request.folder)
            if policy is None:
                missing[case.name, method.key] = NOT_TRAINED
                continue
            trials += [Trial(case, policy, method.key, seed, request.duration) for seed in request.seeds]
        trials += [Trial(case, None, CENTRAL_QUEUE, seed, request.duration) for seed in request.seeds]
    found = _perform_all(trials, workers, stage("reproducing"))
    return {
        "paper": request.paper,
        "title": PAPERS[request.paper][0],
        "seeds": list(request.seeds),
        "duration": request.duration,
        "cases": [_case(request, case, tuned[case.name], found, missing) for case in request.cases],
    }


def _policy(method: Method, case: Case, c: float, folder: Path | None) -> Policy | None:
    if method.agent is not None:
        path = policy_file(folder, case.bed, method.agent)
        return None if path is None else Policy.model_validate({"name": "learned", "file": str(path), **AS_PUBLISHED})
    assert method.spec is not None
    return Policy.model_validate({**method.spec, **({"c": c} if method.key == "gsed" else {})})


def _perform_all(trials: Sequence[Trial], workers: int, progress: Progress) -> dict[tuple[str, str, int], Found]:
    found = {}
    order = sorted(
        trials, key=lambda t: t.policy is not None and t.policy.name in ("adaptive", "learned"), reverse=True
    )
    for done, (i, outcome) in enumerate(work_through(perform, order, workers), start=1):
        trial = order[i]
        found[trial.case.name, trial.title, trial.seed] = outcome
        progress(done, len(order))
    return found


def _tune(request: Request, workers: int, progress: Progress) -> dict[str, float]:
    """Return gsed's best c of each case, on seeds that are not the comparison's."""
    trials = [
        Trial(case, Policy.model_validate({"name": "gsed", "c": c}), f"{c:g}", seed, request.duration)
        for case in request.cases
        for c in TUNED_C
        for seed in TUNING_SEEDS
    ]
    found = _perform_all(trials, workers, progress)

    def score(case: Case, c: float) -> float:
        return sum(math.log(found[case.name, f"{c:g}", seed].times["all"]["mean"]) for seed in TUNING_SEEDS)

    return {case.name: min(TUNED_C, key=lambda c: score(case, c)) for case in request.cases}


# The document.


def _case(
    request: Request,
    case: Case,
    c: float,
    found: Mapping[tuple[str, str, int], Found],
    missing: Mapping[tuple[str, str], str],
) -> dict[str, Any]:
    rows = []
    for key, title in [*((m.key, m.title) for m in methods()), (CENTRAL_QUEUE, CENTRAL_QUEUE)]:
        row: dict[str, Any] = {"method": key, "title": title, "published": dict(case.published.get(key, {}))}
        if (case.name, key) in missing:
            rows.append(row | {"missing": missing[case.name, key]})
            continue
        runs = [found[case.name, key, seed] for seed in request.seeds]
        failed = next((run.error for run in runs if run.error), "")
        if failed:
            rows.append(row | {"missing": failed})
            continue
        base = [found[case.name, BASE, seed] for seed in request.seeds]
        row["rejected"] = sum(run.rejected for run in runs) / len(runs)
        for kind in KINDS:
            row[kind] = {figure: _estimate([run.times[kind][figure] for run in runs]) for figure in FIGURES}
            ratio = paired_ratio([run.times[kind]["mean"] for run in runs], [run.times[kind]["mean"] for run in base])
            row[kind]["against_sed"] = {
                name: value if math.isfinite(value) else None
                for name, value in (("value", ratio.value), ("low", ratio.low), ("high", ratio.high))
            }
        rows.append(row)
    return {
        "case": case.name,
        "testbed": case.bed,
        "rate": case.rate,
        "load": load_of(case),
        "tuned": {"gsed": {"c": c}},
        "methods": rows,
        "pairs": _pairs(case, rows),
    }


def _estimate(values: Sequence[float]) -> dict[str, float | None]:
    found = estimate(values)
    plain: dict[str, float | None] = {"mean": found.mean if math.isfinite(found.mean) else None}
    return plain | ({"half": found.half} if math.isfinite(found.half) else {})


def _pairs(case: Case, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each two methods with published means, whether the simulator puts them in the same order."""
    found = []
    for kind in KINDS:
        known = [row for row in rows if kind in row["published"] and kind in row and row[kind]["mean"]["mean"]]
        for i, a in enumerate(known):
            for b in known[i + 1 :]:
                theirs = a["published"][kind] / b["published"][kind]
                ours = a[kind]["mean"]["mean"] / b[kind]["mean"]["mean"]
                found.append(
                    {
                        "kind": kind,
                        "methods": [a["method"], b["method"]],
                        "published": theirs,
                        "ours": ours,
                        "agrees": (theirs > 1) == (ours > 1),
                    }
                )
    return found


# Tables.


def heading(found: Mapping[str, Any]) -> str:
    seeds = len(found["seeds"])
    return (
        f"{found['title']}, rebuilt in the simulator: {seeds} seed{'s' * (seeds != 1)} of {found['duration']:g} s\n"
        "mean, p90 and p99 in ms ± 95 %; in brackets the published mean; VS SED: ratio of means, published in brackets"
    )


def case_heading(case: Mapping[str, Any]) -> str:
    tuned = f"gsed tuned: c = {case['tuned']['gsed']['c']:g}"
    return f"{case['case']}: {case['rate']:g} queries/s, load {case['load']:.2f}; {tuned}"


def case_table(case: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of one case."""
    published = {kind for row in case["methods"] for kind in row["published"]}
    kinds = [kind for kind in KINDS if kind in published] or ["wiki", "static"]
    columns = ["METHOD"]
    for kind in kinds:
        columns += [f">{kind.upper()} MEAN", ">P90", ">P99", ">VS SED"]
    columns.append(">REJECTED")
    sed: Mapping[str, float] = next((row["published"] for row in case["methods"] if row["method"] == BASE), {})
    rows = []
    for row in case["methods"]:
        cells = [row["title"]]
        for kind in kinds:
            theirs = row["published"].get(kind)
            bracket = f" ({theirs:,.4g})" if theirs is not None else ""
            if "missing" in row:
                cells += [f"{row['missing']}{bracket}", "-", "-", "-"]
                continue
            ratio = row[kind]["against_sed"]["value"]
            told = f" ({theirs / sed[kind]:.2f})" if theirs is not None and kind in sed else ""
            cells += [_ms(row[kind]["mean"]) + bracket, _ms(row[kind]["p90"]), _ms(row[kind]["p99"])]
            cells.append("-" if ratio is None else f"{ratio:.2f}{told}")
        cells.append("-" if "missing" in row else f"{100 * row['rejected']:.1f}%")
        rows.append(cells)
    return columns, rows


def agreement(found: Mapping[str, Any]) -> list[str]:
    """Return in how many pairs of methods the order is the published one, and the pairs in which it is not."""
    lines = []
    for case in found["cases"]:
        pairs = case["pairs"]
        if not pairs:
            continue
        agree = sum(pair["agrees"] for pair in pairs)
        lines.append(f"{case['case']}: {agree} of {len(pairs)} pairs of methods are in the published order")
        for pair in pairs:
            if not pair["agrees"]:
                a, b = pair["methods"]
                lines.append(
                    f"  not {a} and {b}, {pair['kind']}: published {pair['published']:.2f}, here {pair['ours']:.2f}"
                )
    return lines


def _ms(value: Mapping[str, float | None]) -> str:
    mean, half = value["mean"], value.get("half")
    if mean is None:
        return "-"
    digits = 2 if mean < 0.01 else 1 if mean < 0.1 else 0
    text = f"{1e3 * mean:,.{digits}f}"
    return text if half is None else f"{text} ±{1e3 * half:,.{digits}f}"
