"""`vickrey train`: train a policy in the simulator, to a file that `vickrey policy set` and `vickrey eval` take."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from controlplane.training.start import Request
    from controlplane.training.trainer import Result

DESCRIPTION = """\
Train a policy that corrects the best known one, in the simulator. Leaves a folder with policy.safetensors (the best
policy by evaluation on held-out episodes, against the base policy on the same arrivals; of arms the newest),
checkpoints, progress.jsonl and TensorBoard's events. `vickrey train --list` shows the agents. Needs vickrey[rl]."""

EXAMPLES = """
  vickrey train es --scenario heterogeneous-4x --seed 1 --time 10m
  vickrey train sac --scenario random:servers=4-16 --seed 1 --workers 0
  vickrey train sac --scenario balancers-2 --scenario balancers-4 --seed 1      one policy for both
  vickrey train arms --scenario random:servers=4-16,balancers=2 --scenario balancers-2 --workers 0
  vickrey train ppo --scenario heavy-tail --set learning_rate=3e-4 --set training.replicas=32
  vickrey train es --scenario mine.yaml --from runs/es-random-seed1/policy.safetensors
  vickrey train sac --scenario heavy-tail --constraint 'utilisation<=0.8'
  vickrey train cql --offline run.npz --scenario heavy-tail
  vickrey train --resume runs/es-heterogeneous-4x-seed1 --time 20m
  vickrey train sac --scenario heavy-tail --sweep learning_rate=1e-4,1e-3 --ray
"""

_COST = "WORST COST"  # a column, where there are constraints


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_json

    parser.add_argument("agent", nargs="?", metavar="AGENT", help="which agent learns")
    parser.add_argument("--list", action="store_true", help="list the agents")
    parser.add_argument("--show", action="store_true", help="print all hyper-parameters, as --config takes them")
    parser.add_argument(
        "--scenario",
        action="append",
        default=[],
        metavar="S",
        help="a scenario of `vickrey sim --list`, a YAML file, or random[:servers=2-64,balancers=1-8,load=0.3-0.97,"
        "workers=1-8,service=fifo,changes=8-16,trace=FILE]; several times: one policy for all",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of everything random (default 1)")
    parser.add_argument("--steps", type=int, metavar="N", help="control intervals, of all farms together")
    parser.add_argument("--time", metavar="T", help="end after so long: 90s, 30m, 2h")
    parser.add_argument("--out", metavar="DIR", help="folder (default runs/AGENT-SCENARIO-seedN)")
    parser.add_argument("--name", metavar="NAME", help="the policy's, in its file (default AGENT-SCENARIO)")
    parser.add_argument("--about", default="", metavar="TEXT", help="a description of the policy, for its file")
    parser.add_argument("--resume", metavar="DIR", help="go on with the training in this folder")
    parser.add_argument("--config", metavar="FILE", help="hyper-parameters; what it leaves out is the agent's own")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="one hyper-parameter instead")
    parser.add_argument(
        "--from", dest="begin_from", metavar="POLICY", help="begin with this policy: a file, shipped:NAME"
    )
    parser.add_argument("--offline", metavar="DATASET", help="learn from a recorded dataset: cql, bcq, bc")
    parser.add_argument(
        "--constraint", action="append", default=[], metavar="F<=L", help="keep below: utilisation<=0.8 (Lagrangian)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default 1, with --ray all cores; 0: all cores)"
    )
    parser.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="run on a Ray cluster (default: one of its own)"
    )
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="K=V,V,…", help="a training for each value, or combination"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, no evaluations on standard error")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from controlplane.command import CommandError

    _check(args)
    if args.list:
        return _list(args.json)
    from controlplane.training.workers import one_thread

    one_thread()  # before anything imports numpy
    if args.show:
        return _show(args)
    try:
        import torch  # noqa: F401
    except ImportError:
        raise CommandError("training needs torch: pip install 'vickrey[rl]'") from None
    if args.resume:
        return _train(args, None)
    if not args.agent:
        raise CommandError("which agent? `vickrey train --list` shows them", status=2)
    request = _request(args)
    if args.sweep:
        return _sweep(args, request)
    return _train(args, request)


def _check(args: argparse.Namespace) -> None:
    """Raise CommandError for what contradicts itself."""
    from controlplane.command import CommandError

    for option, value, least in (("--steps", args.steps, 1), ("--workers", args.workers, 0), ("--seed", args.seed, 0)):
        if value is not None and value < least:
            raise CommandError(f"expected {option} of at least {least}, not {value}", status=2)
        if value is not None and value >= 2**62:
            raise CommandError(f"expected {option} below 2^62, not {value}", status=2)
    if args.workers is not None and args.workers > 1024:
        raise CommandError(f"expected --workers of at most 1024, not {args.workers}", status=2)
    if args.ray is not None and args.workers is not None and args.ray not in ("local", ""):
        raise CommandError("--workers and --ray ADDRESS: the cluster has its own", status=2)
    if args.resume:
        given = {
            "--scenario": args.scenario,
            "--seed": args.seed is not None,
            "--out": args.out,
            "--config": args.config,
            "--name": args.name,
            "--about": args.about,
            "--set": args.set,
            "--from": args.begin_from,
            "--offline": args.offline,
            "--constraint": args.constraint,
            "--sweep": args.sweep,
        }
        for option, value in given.items():
            if value:
                raise CommandError(f"{option}: a training that goes on keeps what it began with", status=2)


def _seconds(text: str | None) -> float | None:
    from controlplane.command import CommandError
    from controlplane.config_values import duration

    if text is None:
        return None
    try:
        return duration(1.0)(text)
    except ValueError as error:
        raise CommandError(f"--time: {error}", status=2) from None


def _request(args: argparse.Namespace) -> Request:
    from controlplane.training.start import Request

    seed = 1 if args.seed is None else args.seed
    changes = [*args.set]
    if args.steps is not None:
        changes.append(f"training.steps={args.steps}")
    return Request(
        agent=args.agent,
        scenarios=tuple(args.scenario),
        seed=seed,
        out=args.out or _free_folder(args.agent, args.scenario, seed),
        file=args.config,
        changes=tuple(changes),
        begin_from=args.begin_from,
        offline=args.offline,
        constraints=tuple(args.constraint),
        seconds=_seconds(args.time),
        name=args.name,
        about=args.about,
        command=_command(args, seed),
    )


def _command(args: argparse.Namespace, seed: int) -> str:
    """Return the command as it is put on record: what the result depends on, and no folders of this machine but those
    that are named from where it was given."""
    import shlex
    from pathlib import Path

    def name(path: str) -> str:
        return Path(path).name if Path(path).is_absolute() or ".." in Path(path).parts else path

    words = ["vickrey", "train", args.agent]
    for scenario in args.scenario:
        words += ["--scenario", name(scenario) if scenario.endswith((".yaml", ".yml")) else scenario]
    words += ["--seed", str(seed)]
    for option, value in (("--steps", args.steps), ("--time", args.time)):
        if value is not None:
            words += [option, str(value)]
    for option, value in (("--name", args.name), ("--about", args.about or None)):
        if value is not None:
            words += [option, value]
    for option, path in (("--config", args.config), ("--from", args.begin_from), ("--offline", args.offline)):
        if path is not None:
            words += [option, name(path)]
    for option, values in (("--set", args.set), ("--constraint", args.constraint)):
        for value in values:
            words += [option, value]
    return shlex.join(words)


def _free_folder(agent: str, scenarios: Sequence[str], seed: int) -> str:
    import re
    from pathlib import Path

    names = "+".join(re.sub(r"\.ya?ml$", "", Path(name).name) for name in scenarios) or "dataset"
    base = Path("runs") / re.sub(r"[^A-Za-z0-9._+=,-]+", "-", f"{agent}-{names}-seed{seed}")[:120]
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return str(folder)


def _train(args: argparse.Namespace, request: Request | None) -> int:
    from controlplane.command import CommandError, print_json
    from controlplane.learned.policy_file import PolicyFileError
    from controlplane.training import start
    from controlplane.training.workers import Open

    seconds = _seconds(args.time)
    try:
        with _Display(args.quiet) as display, Open(args.workers, args.ray) as workers:
            if request is None:
                found = start.resume(
                    args.resume, args.steps, seconds, args.agent, workers, display.note, display.advance
                )
            else:
                found = start.begin(request, workers, display.note, display.advance)
    except (PolicyFileError, OSError) as error:  # a disk that is full, a folder that is gone
        name = getattr(error, "filename", None)
        text = f"{name}: {error.strerror}" if isinstance(error, OSError) and name else str(error)
        raise CommandError(text) from None
    trainer, result = found
    folder = str(trainer.folder.path)
    if args.json:
        print_json(_document(trainer.plan.config.name, folder, trainer.plan.seed, result))
    else:
        _print(folder, result)
    if result.interrupted:
        part = f", the policy is made of {result.made_of:,}" if result.made_of < result.steps else ""
        print(
            f"vickrey train: interrupted after {result.steps:,} steps{part}; --resume {folder} goes on", file=sys.stderr
        )
        return 1
    return 0


def _document(agent: str, folder: str, seed: int, result: Result) -> dict[str, Any]:
    return {
        "agent": agent,
        "seed": seed,
        "out": folder,
        "policy": f"{folder}/policy.safetensors",
        "steps": result.steps,
        "rounds": result.rounds,
        "seconds": round(result.seconds, 3),
        "interrupted": result.interrupted,
        "best": result.best["evaluation"] if result.best else None,
        "evaluations": result.evaluations,
    }


def _print(folder: str, result: Result) -> None:
    from controlplane.table import print_table

    if result.best is not None:
        best = result.best["evaluation"]
        cost = _cost(best)  # of all scenarios together
        rows = [[name, *_ratio(found), str(found["episodes"])] for name, found in best["scenarios"].items()]
        if len(rows) > 1:
            rows = [[*row, *("" for _ in cost)] for row in rows] + [["all", *_ratio(best), "", *cost]]
        else:
            rows = [[*row, *cost] for row in rows]
        which = "newest policy that was evaluated" if result.cumulative else "best policy"
        print(f"{which}, after {best['steps']:,} of {result.steps:,} steps; mean FCT on held-out episodes")
        print_table(["SCENARIO", "VS BASE", "± 95 %", "EPISODES", *(_COST for _ in cost)], rows)
    print(f"{folder}/policy.safetensors")


def _ratio(found: dict[str, Any]) -> tuple[str, str]:
    return f"{100 * (found['ratio'] - 1):+.2f} %", f"{100 * found['half_width']:.2f}"


def _cost(evaluation: dict[str, Any]) -> tuple[str, ...]:
    """Return the cost of the constraint that is violated most, beside what it may be; nothing without constraints."""
    costs, limit = evaluation.get("costs"), evaluation.get("cost_limit", 0.0)
    if not costs:
        return ()
    worst = max(costs.values())
    return (f"{worst:.4f} {'>' if worst > limit else '≤'} {limit:g}",)


def _sweep(args: argparse.Namespace, request: Request) -> int:
    from controlplane.command import CommandError, print_json
    from controlplane.table import print_table
    from controlplane.training import start
    from controlplane.training.trainer import rank
    from controlplane.training.workers import Open

    requests = start.sweep_requests(request, args.sweep)
    start.prepare(requests[0])
    with _Display(args.quiet) as display, Open(args.workers, args.ray) as workers:
        display.note(f"{len(requests)} trainings, {workers.count} at a time, in {request.out}")
        found: list[dict[str, Any]] = workers.map([start.TrainJob(one) for one in requests])
    for one in found:
        one["set"] = one["set"][-len(args.sweep) :]
    last = (float("inf"), float("inf"))
    ranked = sorted(found, key=lambda one: rank(one["evaluation"]) if one["evaluation"] else last)
    if args.json:
        print_json({"out": request.out, "trainings": ranked})
    else:
        cost = [_COST] if request.constraints else []
        nothing = ("-",) * (2 + len(cost))
        rows = [
            [" ".join(one["set"]), *((*_ratio(e), *_cost(e)) if (e := one["evaluation"]) else nothing), one["out"]]
            for one in ranked
        ]
        print_table(["SET", "VS BASE", "± 95 %", *cost, "FOLDER"], rows)
    if any(one["interrupted"] for one in found):
        raise CommandError("interrupted")
    return 0


class _Display:
    """Progress on standard error: a bar with the time that is left where that is a terminal, else lines alone."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("training"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[what]}"),
            TimeRemainingColumn(),
        )
        disable = quiet or not self._console.is_terminal
        self._progress = Progress(*columns, console=self._console, transient=True, disable=disable)
        self._task = self._progress.add_task("", total=1.0, what="")

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def note(self) -> Callable[[str], None]:
        def tell(text: str) -> None:
            if not self._quiet:
                self._console.print(text, markup=False)

        return tell

    @property
    def advance(self) -> Callable[[float, str], None]:
        def move(share: float, what: str) -> None:
            self._progress.update(self._task, completed=share, what=what)

        return move


def _list(as_json: bool) -> int:
    import ast
    from importlib.util import find_spec
    from pathlib import Path

    from controlplane.agents import AGENTS
    from controlplane.command import print_json
    from controlplane.table import print_table

    rows, seen = [], set[str]()
    for name, place in sorted(AGENTS.items()):
        module, _, of = place.partition(":")
        spec = find_spec(module)
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else "")
        # Of two agents in one file, the second says itself what it is.
        own = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == of and module in seen]
        seen.add(module)
        text = ast.get_docstring(own[0] if own else tree)
        about = " ".join((text or "").split("\n\n")[0].split())
        rows.append([name, about or "not there"])
    if as_json:
        print_json([{"name": name, "about": about} for name, about in rows])
    else:
        print_table(["AGENT", "WHAT IT IS"], rows)
    return 0


def _show(args: argparse.Namespace) -> int:
    from controlplane.command import CommandError, print_json
    from controlplane.training.start import configured

    if not args.agent:
        raise CommandError("which agent? `vickrey train --list` shows them", status=2)
    config, _ = configured(_request(args))
    if args.json:
        print_json(config.complete())
    else:
        sys.stdout.write(config.as_yaml())
    return 0
