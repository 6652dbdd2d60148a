"""The runs of an evaluation: policies and references, in every scenario, with every seed, over all cores.

A policy that raises does not end the evaluation: its run says why it has no figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from controlplane.evaluation.suite import Entry
from controlplane.simulation.pool import work_through
from controlplane.simulation.runs import REFERENCE, Job, Run, bound, execute
from controlplane.simulation.scenario import Policy

Progress = Callable[[int, int], None]  # done, of all


@dataclass(frozen=True)
class Task:
    """One run: a policy, or a reference by its name, in a scenario, with a seed."""

    entry: Entry
    policy: Policy | str
    seed: int

    @property
    def title(self) -> str:
        return self.policy if isinstance(self.policy, str) else self.policy.title


@dataclass(frozen=True)
class Failure:
    """Why a run has no figures."""

    error: str


Outcome = Run | Failure
# By scenario, policy or reference, and seed.
Outcomes = dict[tuple[str, str, int], Outcome]


def perform(task: Task) -> Outcome:
    """Make one run."""
    scenario = task.entry.scenario
    try:
        if isinstance(task.policy, str):
            changed = scenario.model_copy(update={"reference": task.policy})
            return execute(Job(changed, REFERENCE, task.seed))
        changed = scenario.model_copy(update={"policies": (task.policy,)})
        return execute(Job(changed, 0, task.seed))
    except Exception as error:  # a third party's policy may raise anything; the others' runs go on
        return Failure(" ".join(f"{type(error).__name__}: {error}".split())[:500])


def perform_all(tasks: Sequence[Task], workers: int, progress: Progress) -> Outcomes:
    """Make all runs; calls `progress` after each."""
    found: Outcomes = {}
    # What takes longest first, so that no core waits for another at the end.
    order = sorted(tasks, key=_cost, reverse=True)
    for done, (i, outcome) in enumerate(work_through(perform, order, workers), start=1):
        task = order[i]
        found[task.entry.name, task.title, task.seed] = outcome
        progress(done, len(order))
    return found


def _cost(task: Task) -> float:
    """Return about how long a run takes, in no particular unit."""
    if isinstance(task.policy, str):
        return 0.0
    steps = (task.entry.scenario.duration or 60.0) * task.entry.scenario.balancers.count
    return steps * (10.0 if task.policy.name in ("learned", "adaptive", "auction") else 1.0)


def tasks_of(entries: Sequence[Entry], seeds: Sequence[int], policies: Mapping[str, Sequence[Policy]]) -> list[Task]:
    """Return every run: the policies of each scenario (by its name) and its references, with every seed."""
    found = []
    for entry in entries:
        references = [name for name in entry.references if name != "birth-death"]
        contestants: list[Policy | str] = [*policies[entry.name], *references]
        found += [Task(entry, policy, seed) for seed in seeds for policy in contestants]
    return found


def lower_bound(entry: Entry) -> float | None:
    """Return the birth–death bound of the mean, seconds, where it holds."""
    return bound(entry.scenario) if "birth-death" in entry.references else None
