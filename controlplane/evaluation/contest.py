"""Puts an evaluation together: who meets whom, tuning, runs, and the document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.evaluation.measure import Progress, perform_all, tasks_of
from controlplane.evaluation.outcome import Field, document
from controlplane.evaluation.rivals import RIVALS, Rival
from controlplane.evaluation.suite import Suite
from controlplane.evaluation.tuning import Tuned, tune
from controlplane.simulation.scenario import Policy

# Called with a word for the part of the work; returns what counts its runs.
Stage = Callable[[str], Progress]


@dataclass(frozen=True)
class Contest:
    """What is asked for. only: scenarios of the suite. again: heuristics are tuned anew, whatever is cached."""

    suite: Suite
    candidates: Sequence[Policy]
    rivals: Sequence[Rival]
    metric: str = "mean"
    quick: bool = False
    again: bool = False
    only: Sequence[str] | None = None


def hold(contest: Contest, workers: int, stage: Stage) -> dict[str, Any]:
    """Return the document of an evaluation. Takes minutes."""
    whole = contest.suite
    suite = whole if contest.only is None else whole.part(contest.only)
    # A quick look, or one at a part, tunes as the whole does: what is tuned once serves all.
    families = {family: entries for family, entries in whole.families().items() if family in suite.families()}
    tuned = tune(families, whole.tuning_seeds, contest.rivals, workers, stage("tuning"), again=contest.again)
    suite = suite.quick() if contest.quick else suite
    field = Field(contest.candidates, {e.name: _met(contest, e.family, tuned) for e in suite.entries})
    policies = {e.name: _once([*contest.candidates, *field.rivals[e.name]]) for e in suite.entries}
    outcomes = perform_all(tasks_of(suite.entries, suite.seeds, policies), workers, stage("evaluating"))
    return document(suite, field, tuned, outcomes, contest.metric, contest.quick)


def _once(policies: Sequence[Policy]) -> list[Policy]:
    """Return each policy once: a heuristic may be a candidate too."""
    return list({policy.title: policy for policy in policies}.values())


def _met(contest: Contest, family: str, tuned: Tuned) -> list[Policy]:
    """Return the heuristics of a family, as tuned."""
    return [rival.policy(tuned.get((family, rival.name), {})) for rival in contest.rivals]


def named(candidates: Sequence[Policy], given: Sequence[str]) -> list[Policy]:
    """Return the candidates, each called so that no heuristic is: as it was given where its title is one's.

    A heuristic without options that is a candidate keeps its name: its runs are the heuristic's.
    """
    found: list[Policy] = []
    names = {rival.name: rival for rival in RIVALS}
    for policy, text in zip(candidates, given, strict=True):
        rival = names.get(policy.title)
        itself = rival is not None and not rival.grid and policy.weights == "configured" and policy.reserve == "auto"
        if rival is not None and not itself:
            text = text if text not in names else f"{text} untuned"
            policy = policy.model_copy(update={"label": text})
        found.append(policy)
    return found
