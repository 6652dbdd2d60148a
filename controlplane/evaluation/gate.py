"""The promotion gate: a learned policy may ship when it is nowhere worse than the best heuristic, and somewhere better.

**Nowhere worse**: in every scenario, against every heuristic, the upper bound of the paired ratio of means (one-sided,
95 %) is at most 1 + margin, 1 %. The bound and not the estimate: an estimate of +0.5 % ± 2 says nothing, and by
estimates a policy just beyond the margin passes every other time. The claim is an intersection ("not worse here, and
not there, than this one, nor than that one"), so that each part is tested at the full level: a policy that is worse by
more than the margin *anywhere* passes at most one time in twenty, however many scenarios there are (Berger 1982).
Where the estimate is within the margin and the bound is not, the seeds do not tell: `undecided`, which is not passed,
and how many seeds would tell is said.

**Somewhere better**: in some scenario it is better than every heuristic. The scenario's p-value is the greatest of
those against its heuristics (again an intersection: no heuristic is picked as "the best" on the very runs that judge),
and Holm's correction over the scenarios keeps the chance of finding an advantage where there is none at 5 % in all.

**No more lost**: it does not demonstrably lose or reject a greater share of the flows than the best heuristic does: a
mean over the flows that survive could be bought by losing others.

**Recovery**: after a change of capacity, the mean of the first 200 service times is no longer than that of the best
heuristic that estimates speeds; those are few flows, and the margin is wider (RECOVERY_MARGIN).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from controlplane.evaluation.statistics import CONFIDENCE, Ratio, holm, seeds_needed, student_quantile

MARGIN = 0.01
RECOVERY_MARGIN = 0.05
SEEDS_LEAST = 10
# A share of the flows that is too small to be called a loss.
LOST_LEAST = 1e-4

Word = Literal["better", "holds", "undecided", "worse", "no figure"]


@dataclass(frozen=True)
class Cell:
    """A policy in one scenario, against the heuristics there; figures are of the gate's metric, paired by seed.

    ratios: by heuristic, the policy's over its. lost: share of the flows of each run that it lost or rejected, and what
    the best heuristic did, (seeds,) each. recovery: ratios of the phase's mean, by heuristic that estimates.
    """

    scenario: str
    ratios: Mapping[str, Ratio]
    lost: NDArray[np.float64] | None = None
    lost_best: NDArray[np.float64] | None = None
    recovery: Mapping[str, Ratio] = field(default_factory=dict)
    problem: str = ""  # why there are no figures of the policy


@dataclass(frozen=True)
class CellVerdict:
    scenario: str
    word: Word
    rival: str  # the heuristic that it comes off worst against
    ratio: Ratio | None
    p: float  # of being better than every heuristic, before correction
    p_adjusted: float


@dataclass(frozen=True)
class Verdict:
    """passed, and if not, why: one sentence each."""

    passed: bool
    reasons: tuple[str, ...]
    cells: tuple[CellVerdict, ...]
    better: tuple[str, ...]  # scenarios


def judge(cells: Sequence[Cell], margin: float = MARGIN, seeds_least: int = SEEDS_LEAST) -> Verdict:
    """Return whether a policy passes the gate, from its cells of all scenarios."""
    if not cells:
        return Verdict(False, ("no scenario was evaluated",), (), ())
    worst = [_closest(cell) for cell in cells]
    # Better than every heuristic: as likely by chance as against the one that is beaten least surely.
    chances = [max((r.better for r in cell.ratios.values() if _known(r)), default=math.nan) for cell in cells]
    chances = [1.0 if cell.problem or math.isnan(p) else p for cell, p in zip(cells, chances, strict=True)]
    adjusted = holm(chances)
    verdicts = []
    for cell, (rival, ratio), p, corrected in zip(cells, worst, chances, adjusted, strict=True):
        word = _word(cell, ratio, corrected, margin)
        verdicts.append(CellVerdict(cell.scenario, word, rival, ratio, p, corrected))
    reasons = []
    seeds = min((v.ratio.seeds for v in verdicts if v.ratio is not None), default=0)
    if seeds < seeds_least:
        reasons.append(f"{seeds} paired seeds: expected at least {seeds_least}")
    reasons += [_reason(cell, verdict, margin) for cell, verdict in zip(cells, verdicts, strict=True)]
    better = tuple(v.scenario for v in verdicts if v.word == "better")
    if not better:
        nearest = min(verdicts, key=lambda v: v.p_adjusted)
        reasons.append(
            "better nowhere: expected a corrected p-value below "
            f"{1 - CONFIDENCE:.2g} somewhere, the least is {nearest.p_adjusted:.2g} ({nearest.scenario})"
        )
    for cell in cells:
        reasons += [_more_lost(cell), *_slower_recovery(cell)]
    reasons = [reason for reason in reasons if reason]
    return Verdict(not reasons, tuple(reasons), tuple(verdicts), better)


def _known(ratio: Ratio) -> bool:
    return math.isfinite(ratio.value)


def _closest(cell: Cell) -> tuple[str, Ratio | None]:
    """Return the heuristic against which the policy's upper bound is greatest."""
    known = {name: ratio for name, ratio in cell.ratios.items() if _known(ratio)}
    if not known:
        return "", None
    name = max(known, key=lambda n: (_bound(known[n]), n))
    return name, known[name]


def _bound(ratio: Ratio) -> float:
    return ratio.upper if math.isfinite(ratio.upper) else ratio.value


def _word(cell: Cell, ratio: Ratio | None, p_adjusted: float, margin: float) -> Word:
    if cell.problem or ratio is None:
        return "no figure"
    known = [r for r in cell.ratios.values() if _known(r)]
    if max(r.value for r in known) > 1 + margin:
        return "worse"
    if not ratio.upper <= 1 + margin:
        return "undecided"
    return "better" if p_adjusted < 1 - CONFIDENCE else "holds"


def _reason(cell: Cell, verdict: CellVerdict, margin: float) -> str:
    ratio = verdict.ratio
    if verdict.word == "no figure" or ratio is None:
        return f"{cell.scenario}: {cell.problem or 'no heuristic to compare with'}"
    if verdict.word == "worse":
        worst = max((r.value, n) for n, r in cell.ratios.items() if _known(r))
        return f"{cell.scenario}: {_percent(worst[0])} against {worst[1]}, expected at most {100 * margin:+.3g} %"
    if verdict.word == "undecided":
        needed = seeds_needed(ratio, margin)
        tell = f"; about {needed} seeds would tell" if needed is not None and needed > ratio.seeds else ""
        return (
            f"{cell.scenario}: {_percent(ratio.value)} against {verdict.rival}, but up to {_percent(ratio.upper)} "
            f"by the one-sided 95 % bound, expected at most {100 * margin:+.3g} %{tell}"
        )
    return ""


def _more_lost(cell: Cell) -> str:
    if cell.lost is None or cell.lost_best is None or len(cell.lost) < 2:
        return ""
    more = cell.lost - cell.lost_best
    mean, error = float(more.mean()), float(more.std(ddof=1)) / math.sqrt(len(more))
    if mean <= LOST_LEAST or mean - student_quantile(CONFIDENCE, len(more) - 1) * error <= 0:
        return ""
    return (
        f"{cell.scenario}: loses {100 * cell.lost.mean():.3g} % of the flows, the best heuristic "
        f"{100 * cell.lost_best.mean():.3g} %"
    )


def _slower_recovery(cell: Cell) -> list[str]:
    slower = []
    for name, ratio in cell.recovery.items():
        if _known(ratio) and not _bound(ratio) <= 1 + RECOVERY_MARGIN:
            slower.append(
                f"{cell.scenario}: after the change {_percent(ratio.value)} against {name}, "
                f"up to {_percent(ratio.upper)} by the one-sided 95 % bound, "
                f"expected at most {100 * RECOVERY_MARGIN:+.3g} %"
            )
    return slower


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.2f} %"
