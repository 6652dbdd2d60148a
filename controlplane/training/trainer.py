"""A training from its first round to its policy file: rounds, evaluations on held-out episodes, checkpoints."""

from __future__ import annotations

import contextlib
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from controlplane.learned.manifest import Manifest, Training
from controlplane.learned.policy_file import write
from controlplane.training.checkpoints import Folder, Progress
from controlplane.training.config import Config
from controlplane.training.episodes import Setup
from controlplane.training.jobs import HELD_OUT, EvaluateJob, Evaluation
from controlplane.training.learners import Learner, Parameters
from controlplane.training.ranges import Sample, Seen
from controlplane.training.tasks import RandomTask, Task
from controlplane.training.workers import Workers

# Episodes of an evaluation that are run as one job.
TOGETHER, TOGETHER_RANDOM = 4, 2


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    config: Config
    tasks: tuple[Task, ...]
    setup: Setup
    seed: int
    command: str
    commit: str
    seconds: float | None = None  # stop after so long
    name: str | None = None  # of the policy; None: after agent and scenarios
    description: str = ""


@dataclass
class Result:
    """How a training stands."""

    steps: int = 0
    settled: int = 0  # steps when the learner last had nothing put off
    rounds: int = 0
    seconds: float = 0.0
    best: dict[str, Any] | None = None  # score, parameters, evaluation
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False
    cumulative: bool = False  # the newest policy is the result, not the best by evaluation

    @property
    def made_of(self) -> int:
        """Steps that the newest policy is made of."""
        return self.settled if self.cumulative else self.steps


class Trainer:
    """Runs a learner. `note` is told what happens, `advance` how much of it is done, from 0 to 1."""

    def __init__(
        self,
        plan: Plan,
        learner: Learner,
        folder: Folder,
        workers: Workers,
        note: Callable[[str], None],
        advance: Callable[[float, str], None],
    ) -> None:
        self.plan, self.learner, self.folder, self.workers = plan, learner, folder, workers
        self.note, self.advance = note, advance
        self.result = Result(cumulative=learner.cumulative)
        self.seen = Seen(plan.seed)
        self._began = 0.0  # when it would have begun, had it never been stopped
        self._evaluated: list[Sample] = []  # inputs of the last evaluation
        # The base policy's completion times in the held-out episodes; anew when resumed, as it may have changed.
        self._base: dict[str, Any] = {}

    # Going on from a checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on after a round."""
        r = self.result
        return {
            "learner": self.learner.state_dict(),
            "agent": self.plan.config.name,
            "steps": r.steps,
            "settled": r.settled,
            "rounds": r.rounds,
            "seconds": r.seconds,
            "best": r.best,
            "evaluations": r.evaluations,
            "seen": self.seen.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.learner.load_state_dict(state["learner"])
        best = state["best"]
        if best is not None and self.plan.setup.constraints and "costs" not in best["evaluation"]:
            best = None  # of a time when costs were not measured: it would stand for ever as one that violates nothing
        self.result = Result(
            int(state["steps"]),
            int(state.get("settled", state["steps"])),
            int(state["rounds"]),
            float(state["seconds"]),
            best,
            state["evaluations"],
            cumulative=self.learner.cumulative,
        )
        self.seen = Seen.of(state["seen"])

    # The loop

    def run(self) -> Result:
        """Train to the end, or to an interrupt: then what is there is saved, and the result says so."""
        r, training = self.result, self.plan.config.training
        self._began = time.monotonic() - r.seconds
        with contextlib.closing(Progress(self.folder.path)) as progress, terminated():
            try:
                if r.rounds == 0:
                    self._evaluate()
                elif r.best is None:
                    self._evaluate(progress)  # so that a training that is interrupted, or over, has a best one
                while not self._is_over():
                    then = r.steps
                    self._round(progress)
                    if _crosses(then, r.steps, training.evaluate_every):
                        self._evaluate(progress)
                    if _crosses(then, r.steps, training.checkpoint_every):
                        self._settle(progress)
                        self.save()
                    self._tick()
                if not r.evaluations or r.evaluations[-1]["steps"] != r.steps:
                    self._evaluate(progress)
                self.advance(1.0, f"{r.steps:,} steps")
            except Abandoned:
                raise  # in the middle of a change: what was saved last is whole
            except KeyboardInterrupt:
                r.interrupted = True
        with deaf():
            self._tick()
            self.save()
            self._write_files()
        return r

    def _tick(self) -> None:
        self.result.seconds = time.monotonic() - self._began

    def _is_over(self) -> bool:
        r, plan = self.result, self.plan
        by_steps = r.steps / plan.config.training.steps
        by_time = r.seconds / plan.seconds if plan.seconds is not None else 0.0
        self.advance(min(1.0, max(by_steps, by_time)), f"{r.steps:,} steps")
        return by_steps >= 1.0 or by_time >= 1.0

    def _round(self, progress: Progress) -> None:
        r = self.result
        interrupts = Interrupts()
        try:
            found = self.learner.round(r.rounds, self.workers, interrupts.hold)
            self._tick()
            r.rounds += 1
            r.steps += found.steps
            for sample in found.samples:
                self.seen.add(sample)
        finally:
            interrupts.release()
        progress.write(r.steps, {"round": r.rounds, "seconds": round(r.seconds, 3)} | found.figures)

    def _settle(self, progress: Progress | None) -> None:
        """Have the learner do what it put off, for a policy that is as good as the rounds before."""
        figures = self.learner.settle()
        self.result.settled = self.result.steps
        self._tick()
        if figures and progress is not None:
            progress.write(self.result.steps, figures)

    # Evaluation

    def _evaluate(self, progress: Progress | None = None) -> None:
        """Compare with the base policy on held-out episodes, which are the same each time."""
        self._settle(progress)
        if not self.plan.tasks:
            return  # a dataset alone
        r, parameters = self.result, self.learner.parameters()
        jobs = evaluation_jobs(self.plan, parameters, self.learner.decode)
        jobs = [replace(job, twins=self._key(job) not in self._base) for job in jobs]
        results: list[Evaluation] = self.workers.map(jobs)
        for job, found in zip(jobs, results, strict=True):
            self._base.setdefault(self._key(job), found.base)
        self._evaluated = [found.sample for found in results]
        self._tick()
        complete = [replace(e, base=self._base[self._key(job)]) for job, e in zip(jobs, results, strict=True)]
        summary = {"steps": r.steps} | summary_of(complete) | self._costs_of(complete)
        r.evaluations.append(summary)
        is_best = r.best is None or self.learner.cumulative or rank(summary) < rank(r.best["evaluation"])
        if is_best:
            r.best = {"parameters": parameters, "evaluation": summary}
        self._write("last.safetensors", parameters, summary)
        if is_best:
            self._write("best.safetensors", parameters, summary)
        if progress is not None:
            figures = {"evaluation/ratio": summary["ratio"], "evaluation/half_width": summary["half_width"]}
            figures |= {f"evaluation/{name}": task["ratio"] for name, task in summary["scenarios"].items()}
            figures |= {f"evaluation/cost of {name}": cost for name, cost in summary.get("costs", {}).items()}
            progress.write(r.steps, figures)
        self.note(
            f"{r.steps:>10,} steps  {r.seconds:6.0f} s  mean FCT {100 * (summary['ratio'] - 1):+.2f} % "
            f"± {100 * summary['half_width']:.2f} of {self.plan.config.training.base!s}'s"
            + "".join(f"  {name} violated by {cost:.4f}" for name, cost in summary.get("costs", {}).items())
            + ("  (best)" if is_best and not self.learner.cumulative else "")
        )

    def _costs_of(self, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
        """Return by how much each constraint was violated on average, and how much may be; nothing without any."""
        names = [name for name, _ in self.plan.setup.constraints]
        if not names:
            return {}
        means = np.mean([e.costs for e in evaluations], axis=0)
        costs = dict(zip(names, map(float, means), strict=True))
        return {"costs": costs, "cost_limit": self.plan.config.agent.cost_limit}

    @staticmethod
    def _key(job: EvaluateJob) -> str:
        return f"{job.task.name} {job.seed}"

    # Files

    def save(self) -> None:
        """Write a checkpoint."""
        path = self.folder.save(self.result.rounds, self.state_dict(), self.plan.config.training.keep)
        if len(self.seen) or self._evaluated:
            self._write(f"checkpoints/{path.name}/policy.safetensors", self.learner.parameters(), None)

    def _write_files(self) -> None:
        """Write the result."""
        r = self.result
        if not len(self.seen) and not self._evaluated:
            return  # interrupted before anything was done
        last = r.evaluations[-1] if r.evaluations and r.evaluations[-1]["steps"] == r.made_of else None
        self._write("last.safetensors", self.learner.parameters(), last)
        if r.best is not None and not self.learner.cumulative:
            self._write("policy.safetensors", r.best["parameters"], r.best["evaluation"])
        else:
            self._write("policy.safetensors", self.learner.parameters(), last)

    def _write(self, name: str, parameters: Parameters, evaluation: dict[str, Any] | None) -> None:
        write(self.folder.path / name, parameters, self._manifest(evaluation))

    def _manifest(self, evaluation: dict[str, Any] | None) -> Manifest:
        plan, config = self.plan, self.plan.config
        scenario = " + ".join(task.name for task in plan.tasks)
        usual = re.sub(r"[^A-Za-z0-9._]+", "-", f"{config.name}-{scenario or 'dataset'}")[:64].strip("-")
        return Manifest(
            name=plan.name or usual,
            agent=config.name,
            schema=config.schema,
            ranges=self.seen.ranges(self._evaluated if not self.learner.recorded or not len(self.seen) else ()),
            training=Training(
                command=plan.command,
                commit=plan.commit,
                seed=plan.seed,
                steps=self.result.made_of,
                scenario=scenario,
                seconds=round(self.result.seconds, 1),
                hyper_parameters=config.as_json(),
            ),
            description=plan.description,
            hidden=config.agent.hidden,
            decode=self.learner.decode,  # type: ignore[arg-type]
            base=config.training.base,
            interval=config.training.interval,
            rule=config.action.rule,
            limits=dict(config.action.limits),
            evaluation=evaluation,
        )


def evaluation_jobs(plan: Plan, parameters: Parameters, decode: str) -> list[EvaluateJob]:
    """Return the jobs of an evaluation: the same held-out episodes for every training, and the base policy decides at
    every step, as it does in service."""
    jobs, setup = [], replace(plan.setup, base_every=1)
    for task in plan.tasks:
        together = TOGETHER_RANDOM if isinstance(task, RandomTask) else TOGETHER
        left, number = plan.config.training.evaluate_episodes, 0
        while left > 0:
            count = min(together, left)
            jobs.append(EvaluateJob(setup, task, parameters, decode, (HELD_OUT, number), count))
            left, number = left - count, number + 1
    return jobs


def summary_of(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the ratio of mean FCTs to the base policy's: geometric mean over episodes, scenarios alike, and half of
    its 95 % confidence interval; and the same of each scenario."""
    by_task: dict[str, list[np.ndarray[Any, np.dtype[np.float64]]]] = {}
    for e in evaluations:
        both = np.isfinite(e.policy) & np.isfinite(e.base) & (e.policy > 0) & (e.base > 0)
        by_task.setdefault(e.task, []).append(np.log(e.policy[both] / e.base[both]))
    scenarios: dict[str, dict[str, float]] = {}
    means, errors = [], []
    for name, parts in by_task.items():
        logs = np.concatenate(parts)
        mean = float(logs.mean()) if len(logs) else 0.0
        error = float(logs.std(ddof=1) / math.sqrt(len(logs))) if len(logs) > 1 else 0.0
        means.append(mean)
        errors.append(error)
        half = _t95(len(logs) - 1) * error * math.exp(mean)
        scenarios[name] = {"ratio": math.exp(mean), "half_width": half, "episodes": len(logs)}
    mean = float(np.mean(means))
    error = math.sqrt(sum(e * e for e in errors)) / len(errors)
    least = min(int(s["episodes"]) for s in scenarios.values())
    return {
        "ratio": math.exp(mean),
        "half_width": _t95(least - 1) * error * math.exp(mean),
        "scenarios": scenarios,
        "against": "base",
    }


def rank(summary: Mapping[str, Any]) -> tuple[float, float]:
    """Return what orders policies, the best first: how far constraints are violated beyond their limit, then FCT."""
    worst = max(summary.get("costs", {}).values(), default=0.0)
    return max(worst - summary.get("cost_limit", 0.0), 0.0), float(summary["ratio"])


def _t95(freedom: int) -> float:
    """Return Student's t at 97.5 %, by Cornish and Fisher's expansion (within 1 % from 4 degrees on)."""
    if freedom < 1:
        return 12.71
    z, v = 1.959964, float(freedom)
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)


def _crosses(before: int, now: int, every: int) -> bool:
    return now // every > before // every


class Abandoned(KeyboardInterrupt):
    """A second interrupt: nothing more is written."""


class Interrupts:
    """Puts interrupts off from hold() to release(), which then raises; a second one gets through at once.

    A learner holds them when it begins to change; they are released when the trainer has put the round on its books.
    """

    def __init__(self) -> None:
        self._came = False
        self._before: dict[int, Any] = {}

    def hold(self) -> None:
        """Put interrupts off from now on."""
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._remember) for n in (signal.SIGINT, signal.SIGTERM)}

    def _remember(self, number: int, frame: Any) -> None:
        if self._came:
            raise Abandoned
        self._came = True

    def release(self) -> None:
        """Let them through again; raise the one that came."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._came:
            self._came = False
            raise KeyboardInterrupt


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Ignore interrupts while files are written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def terminated() -> Iterator[None]:
    """Take TERM as an interrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
