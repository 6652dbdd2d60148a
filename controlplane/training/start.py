"""From what was asked for to a training that runs: a new one, one that goes on, or a sweep of several."""

from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controlplane import registry
from controlplane.agents.es import EvolutionStrategy
from controlplane.agents.surfaces import units_of
from controlplane.command import CommandError
from controlplane.config_errors import did_you_mean
from controlplane.env.base import STATIC
from controlplane.env.objective import FIELDS, UTILISATION
from controlplane.env.simulated import SourceError
from controlplane.learned.policy_file import PolicyFileError, read
from controlplane.training.checkpoints import Folder
from controlplane.training.config import Action, Config, agent_class, load, path_of
from controlplane.training.episodes import Episodes, Setup
from controlplane.training.learners import Evolution, Learner
from controlplane.training.tasks import Task, tasks_of
from controlplane.training.trainer import Plan, Result, Trainer
from controlplane.training.workers import Here, Workers
from dataplane.simulator import SimulationError


@dataclass(frozen=True)
class Request:
    """What the command line says; plain values."""

    agent: str
    scenarios: tuple[str, ...]
    seed: int = 0
    out: str = ""
    file: str | None = None
    changes: tuple[str, ...] = ()
    begin_from: str | None = None
    offline: str | None = None
    constraints: tuple[str, ...] = ()
    seconds: float | None = None
    command: str = ""
    name: str | None = None
    about: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Request:
        """Return what as_json() gave."""
        lists = ("scenarios", "changes", "constraints")
        fields: dict[str, Any] = {key: tuple(v) if key in lists else v for key, v in given.items()}
        return cls(**fields)


def constraints_of(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Return field and limit of each FIELD<=LIMIT. Raises CommandError."""
    found: list[tuple[str, float]] = []
    for text in texts:
        field, sign, limit = text.partition("<=")
        field = field.strip()
        known = [UTILISATION, *FIELDS]
        try:
            number = float(limit)
        except ValueError:
            number = float("nan")
        if not sign or not number >= 0 or number == float("inf"):
            raise CommandError(f"--constraint {text}: expected FIELD<=LIMIT, as utilisation<=0.8", status=2)
        if field not in known:
            what = f"unknown field{did_you_mean(field, known)}; there are {', '.join(known)}"
            raise CommandError(f"--constraint {text}: {what}", status=2)
        if field in [name for name, _ in found]:
            raise CommandError(f"--constraint {text}: {field} is constrained twice", status=2)
        found.append((field, number))
    return tuple(found)


def prepare(request: Request) -> tuple[Plan, Learner]:
    """Return the plan and a learner that has learned nothing yet. Raises CommandError for whatever is wrong."""
    if request.name is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", request.name):
        raise CommandError(f"--name {request.name}: expected up to 64 letters, digits, '.', '_' and '-'", status=2)
    try:
        request.about.encode()
    except UnicodeEncodeError:
        raise CommandError("--about: expected text in UTF-8", status=2) from None
    config, parameters = configured(request)
    # An offline agent can learn without a scenario to be evaluated in.
    none = request.offline is not None and not request.scenarios
    hide = registry.create(config.training.base).name not in STATIC
    tasks = () if none else tasks_of(request.scenarios, config.training.interval, hide_weights=hide)
    setup = setup_of(config, tasks, constraints_of(request.constraints))
    for task in tasks:
        _try_out(setup, task)
    plan = Plan(
        config, tasks, setup, request.seed, request.command, commit(), request.seconds, request.name, request.about
    )
    learner = make_learner(plan, request.offline)
    if parameters is not None:
        try:
            learner.begin_from(parameters)
        except (ValueError, RuntimeError) as error:
            raise CommandError(f"--from {request.begin_from}: {' '.join(str(error).split())[:200]}") from None
    return plan, learner


def configured(request: Request) -> tuple[Config, dict[str, Any] | None]:
    """Return the configuration, and the parameters to begin with, if any. Raises CommandError."""
    config = load(request.agent, request.file, request.changes)
    if request.begin_from is None:
        return config, None
    return _continued(config, request.begin_from, request.changes)


def setup_of(config: Config, tasks: Sequence[Task], constraints: tuple[tuple[str, float], ...] = ()) -> Setup:
    """Return what the episodes have in common."""
    t = config.training
    return Setup(
        config.schema,
        steps=t.episode,
        interval=t.interval,
        base=t.base,
        base_every=t.base_every,
        reward=t.reward,
        shared_reward=t.shared_reward,
        rule=config.action.rule,
        limits=dict(config.action.limits),
        constraints=constraints,
        warmup=t.settle,
        width=max((task.width for task in tasks), default=1),
    )


def _try_out(setup: Setup, task: Task) -> None:
    """Begin an episode, so that what the simulator or the base policy refuses is told at once. Raises CommandError."""
    try:
        episodes = Episodes(setup, task, task.balancers[0], 1, twins=True, width=task.width)
        try:
            episodes.begin([[0]])
            episodes.inputs()
        finally:
            episodes.close()
    except (ValueError, SourceError, SimulationError) as error:
        raise CommandError(f"--scenario {task.name}: {' '.join(str(error).split())}", status=2) from None


def make_learner(plan: Plan, dataset: str | None = None) -> Learner:
    """Return the learner of a plan."""
    config, t = plan.config, plan.config.training
    found: Any = agent_class(config.name)
    offline = bool(getattr(found, "offline", False))
    if offline and dataset is None:
        raise CommandError(f"agent {config.name} learns from a dataset: --offline FILE", status=2)
    if dataset is not None:
        if not offline:
            raise CommandError(f"--offline: agent {config.name} learns by acting; cql, bcq and bc do not", status=2)
        if plan.setup.constraints:
            raise CommandError(
                f"--constraint: agent {config.name} learns from a dataset, in which nothing can be kept below a limit; "
                "--set cost_weight=W takes the recorded costs off its reward",
                status=2,
            )
        from controlplane.training.offline import Offline

        offline_learner: Learner = Offline(found(config.schema, config.agent, plan.seed), dataset)
        return offline_learner
    if issubclass(found, EvolutionStrategy):
        strategy = found(config.schema, config.agent, plan.seed)
        return Evolution(strategy, plan.setup, plan.tasks, plan.seed, t.lanes)
    if config.name == "arms":
        if plan.setup.constraints:
            raise CommandError("--constraint: agent arms judges completion times alone", status=2)
        from controlplane.training.arms import Regression

        return Regression(found(config.schema, config.agent, plan.seed), plan.setup, plan.tasks, plan.seed)
    from controlplane.training.gradient import Gradient

    agent = found(config.schema, config.agent, plan.seed)
    return Gradient(agent, plan.setup, plan.tasks, plan.seed, t.replicas, t.lanes)


def _continued(config: Config, policy: str, changes: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """Return the configuration with the actions, size and base of an exported policy, and its parameters.

    Raises CommandError when a change asks for others.
    """
    from controlplane.learned.model import find

    try:
        parameters, manifest = read(find(policy))
    except PolicyFileError as error:
        raise CommandError(f"--from {error}", status=2) from None
    wanted = agent_class(config.name).decode
    if manifest.decode != wanted:
        means = {"mean": "logits of probabilities", "mode": "values of levels"}
        what = f"its network's outputs are {means[manifest.decode]}, those of agent {config.name} {means[wanted]}"
        raise CommandError(f"--from {policy}: {what}: it would begin as another policy", status=2)
    s = manifest.schema
    action = Action(
        kind=s.kind,  # type: ignore[arg-type]
        levels=s.levels,
        row_heads=s.row_heads if s.kind == "curves" else config.action.row_heads,  # type: ignore[arg-type]
        global_heads=s.global_heads if s.kind == "curves" else config.action.global_heads,  # type: ignore[arg-type]
        bounds=dict(s.bounds),
        rule=manifest.rule,
        limits=dict(manifest.limits),
    )
    training = config.training.model_copy(update={"base": manifest.base})
    taken = replace(config, action=action, training=training, agent=replace(config.agent, hidden=manifest.hidden))
    if config.name == "arms":
        try:
            units_of(taken.schema)
        except ValueError as error:
            raise CommandError(f"--from {policy}: {error}: what agent arms corrects", status=2) from None
    for change in reversed(changes):  # of several of one key the last counts
        path = path_of(config.name, change)
        asked, has = (_comparable(one, path) for one in (config, taken))
        if asked != has:
            what = f"its {'.'.join(path)} is {has}, and a policy keeps it in fine-tuning"
            raise CommandError(f"--set {change}: contradicts --from {policy}: {what}", status=2)
    return taken, parameters


def _comparable(config: Config, path: Sequence[str]) -> Any:
    """Return a value of the configuration in a form in which equal ones are equal."""
    tree: Any = config.complete()
    if isinstance(tree["training"]["base"], str):
        tree["training"]["base"] = {"name": tree["training"]["base"]}
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def commit() -> str:
    """Return the commit of the source tree that this runs from, with + when it was changed; "" when there is none."""
    here = Path(__file__).resolve().parent
    try:
        head, changed = (
            subprocess.run(["git", *what], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout
            for what in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", "../.."])
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.strip() + ("+" if changed.strip() else "")


def begin(
    request: Request, workers: Workers, note: Callable[[str], None], advance: Callable[[float, str], None]
) -> tuple[Trainer, Result]:
    """Run a new training."""
    plan, learner = prepare(request)
    folder = Folder(request.out)
    folder.create()
    write_config(folder, request, plan)
    if not getattr(plan.config.agent, "shared", True):
        note("shared: false: each balancer learns a network of its own; the policy file has the first balancer's")
    trainer = Trainer(plan, learner, folder, workers, note, advance)
    return trainer, trainer.run()


def resume(
    path: str,
    steps: int | None,
    seconds: float | None,
    agent: str | None,
    workers: Workers,
    note: Callable[[str], None],
    advance: Callable[[float, str], None],
) -> tuple[Trainer, Result]:
    """Go on with a training from its newest checkpoint; steps, seconds: its new end, if any."""
    folder = Folder(path)
    checkpoint = folder.newest()
    request = read_request(folder)
    if agent is not None and agent != request.agent:
        raise CommandError(f"--resume {path}: a training of {request.agent}, not of {agent}", status=2)
    if steps is not None:
        request = replace(request, changes=(*request.changes, f"training.steps={steps}"))
    if seconds is not None:
        request = replace(request, seconds=seconds)
    plan, learner = prepare(replace(request, file=str(folder.path / "hyper-parameters.yaml"), begin_from=None))
    trainer = Trainer(plan, learner, folder, workers, note, advance)
    try:
        trainer.load_state_dict(folder.load(checkpoint))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CommandError(f"{checkpoint}: {' '.join(str(error).split())[:200]}", status=2) from None
    note(f"{checkpoint.name}: going on after {trainer.result.steps:,} steps")
    return trainer, trainer.run()


def write_config(folder: Folder, request: Request, plan: Plan) -> None:
    """Write what the training is, so that it can go on and be understood."""
    import json

    (folder.path / "request.json").write_text(
        json.dumps(replace(request, changes=(), file=None).as_json(), indent=2) + "\n", encoding="utf-8"
    )
    (folder.path / "hyper-parameters.yaml").write_text(plan.config.as_yaml(), encoding="utf-8")


def read_request(folder: Folder) -> Request:
    """Return what a training was asked for. Raises CommandError."""
    import json

    file = folder.path / "request.json"
    try:
        return Request.of(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        what = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not a request of ours"
        raise CommandError(f"{file}: {what}", status=2) from None


# Sweeps


@dataclass(frozen=True)
class TrainJob:
    """A whole training, as one job of a sweep."""

    request: Request

    def run(self) -> dict[str, Any]:
        _, result = begin(self.request, Here(), lambda text: None, lambda share, text: None)
        return {
            "set": list(self.request.changes),
            "out": self.request.out,
            "steps": result.steps,
            "evaluation": result.best["evaluation"] if result.best else None,
            "interrupted": result.interrupted,
        }


def sweep_requests(request: Request, sweeps: Sequence[str]) -> list[Request]:
    """Return a request for each combination of the swept keys' values, after checking each."""
    axes = []
    for text in sweeps:
        key, equals, values = text.partition("=")
        parts = _split(values)
        if not equals or not key or not all(parts):
            raise CommandError(f"--sweep {text}: expected KEY=VALUE,VALUE,…", status=2)
        axes.append([f"{key}={value}" for value in parts])
    requests = []
    for chosen in itertools.product(*axes):
        name = ",".join(c.replace("/", "_") for c in chosen)
        one = replace(request, changes=(*request.changes, *chosen), out=f"{request.out}/{name}")
        configured(one)
        requests.append(one)
    return requests


def _split(values: str) -> list[str]:
    """Split at commas that stand outside of brackets."""
    parts, depth = [""], 0
    for letter in values:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
