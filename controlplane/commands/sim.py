"""`vickrey sim`: compare policies in the simulator, in a scenario that comes with Vickrey or in one's own."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlplane.simulation.runs import Run
    from controlplane.simulation.scenario import Scenario

DESCRIPTION = """\
Simulate a scenario: every policy with every seed, on the same flows, over the core that serves real traffic.
Prints figures with 95 % confidence intervals, differences from the first policy, and the gap to the reference."""

EXAMPLES = """
  vickrey sim --list                                    the scenarios that come with Vickrey
  vickrey sim heterogeneous-4x
  vickrey sim heavy-tail --policies lsq,gsed:c=0,adaptive --load 0.7 --seeds 10
  vickrey sim late-binding --policies adaptive,adaptive:reserve=off,lsq
  vickrey sim capacity-swap --out swap                  also swap/report.html with plots, CSV and JSON
  vickrey sim heterogeneous-4x --show > mine.yaml       a file to begin with
  vickrey sim mine.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_json

    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="name of a shipped scenario, or a YAML file")
    parser.add_argument("--list", action="store_true", help="list the shipped scenarios")
    parser.add_argument("--show", action="store_true", help="print the scenario's file and do nothing")
    parser.add_argument("--policies", metavar="P,P,…", help="these instead: names or files, with options as gsed:c=0.3")
    parser.add_argument("--seeds", metavar="N", help="so many seeds, 1 … N; or a list: 7,8,9")
    parser.add_argument("--flows", type=int, metavar="N", help="flows a run")
    parser.add_argument("--load", type=float, metavar="RHO", help="offered load, a share of the capacity")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: all cores)")
    parser.add_argument("--out", metavar="DIR", help="write report.html, result.json and runs.csv there")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from controlplane.command import CommandError, print_json

    if args.list:
        return _list(args.json)
    if not args.scenario:
        raise CommandError("which scenario? A name from `vickrey sim --list`, or a YAML file", status=2)
    if args.jobs is not None and args.jobs < 1:
        raise CommandError(f"expected --jobs of at least 1, not {args.jobs}", status=2)
    if args.show:
        return _show(args.scenario)

    scenario = _load(args.scenario)
    scenario = _changed(scenario, args)
    writer = None
    if args.out is not None:
        from controlplane.simulation.page import Writer

        writer = Writer(args.out)  # before the work: a folder that cannot be made is an error at once

    from controlplane.simulation import outcome

    runs = _execute(scenario, args.jobs)
    found = outcome.document(_name(args.scenario), scenario, runs)
    if writer is not None:
        writer.write(found)
    if args.json:
        print_json(found)
        return 0
    print(outcome.heading(found))
    print_fitting(*outcome.table(found))
    phases = outcome.phase_table(found)
    if phases:
        print()
        print_fitting(*phases)
    classes = outcome.class_table(found)
    if classes:
        print()
        print_fitting(*classes)
    if writer is not None:
        print(f"\n{writer.page}")
    return 0


def print_fitting(columns: list[str], rows: list[list[str]]) -> None:
    """Print a table, in several of fewer columns where the terminal is narrow."""
    import shutil

    from controlplane.table import print_table

    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    widths = [max(len(row[i]) for row in [columns, *rows]) + 2 for i in range(len(columns))]
    begin = 1
    while begin < len(columns):
        end = begin + 1
        while end < len(columns) and widths[0] + sum(widths[begin : end + 1]) <= room:
            end += 1
        print_table([columns[0], *columns[begin:end]], [[row[0], *row[begin:end]] for row in rows])
        begin = end


def _list(as_json: bool) -> int:
    from controlplane.command import print_json
    from controlplane.simulation.scenario_file import library, load
    from controlplane.table import print_table

    scenarios = [(name, load(name)) for name in library()]
    if as_json:
        print_json(
            [{"name": n, "title": s.title, "description": " ".join(s.description.split())} for n, s in scenarios]
        )
    else:
        print_table(["SCENARIO", "WHAT IT SHOWS"], [[name, s.title] for name, s in scenarios])
    return 0


def _problems(error: Any) -> Any:
    from controlplane.command import CommandError

    return CommandError(str(error), details={"problems": error.as_json()})


def _load(name: str) -> Scenario:
    from controlplane.config_errors import ConfigError
    from controlplane.simulation.scenario_file import load

    try:
        return load(name)
    except ConfigError as error:
        raise _problems(error) from None


def _show(name: str) -> int:
    from controlplane.config_errors import ConfigError
    from controlplane.simulation.scenario_file import find

    try:
        sys.stdout.write(find(name).read_text(encoding="utf-8"))
    except ConfigError as error:
        raise _problems(error) from None
    return 0


def _name(argument: str) -> str:
    from pathlib import Path

    return Path(argument).stem


def _changed(scenario: Scenario, args: argparse.Namespace) -> Scenario:
    """Return the scenario with what the command line says instead."""
    from pydantic import ValidationError

    from controlplane.command import CommandError
    from controlplane.simulation.scenario import Scenario, mistakes
    from controlplane.simulation.scenario_file import explain

    given: dict[str, Any] = {}
    if args.policies is not None:
        given["policies"] = _policies(scenario, args.policies)
    if args.seeds is not None:
        given["seeds"] = _seeds(args.seeds)
    if args.flows is not None:
        given["flows"] = args.flows
    if args.load is not None:
        given |= {"load": args.load, "rate": None}
    if not given:
        return scenario
    try:
        # Validated anew: model_copy would take anything.
        changed = Scenario.model_validate(scenario.model_dump() | {"policies": scenario.policies} | given)
    except ValidationError as errors:
        # A list is too short only when what was in it is bad.
        wrong = [error for error in errors.errors() if error["type"] != "too_short"]
        lines = [f"--{error['loc'][0]}: {explain(error, error['loc'], given)}" for error in wrong]
        raise CommandError("\n".join(lines), status=2) from None
    lines = [f"--{path[0]}: {what}" for path, what in mistakes(changed) if path[0] in given]
    if lines:
        raise CommandError("\n".join(lines), status=2)
    return changed


def _seeds(text: str) -> Any:
    from controlplane.command import CommandError

    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise CommandError(f"expected --seeds as a number or a list like 7,8,9, not '{text}'", status=2) from None
    return numbers if "," in text else numbers[0]


def _policies(scenario: Scenario, text: str) -> tuple[Any, ...]:
    """Return the policies that are named: the scenario's own where a name or label is one of its, else new ones."""
    from controlplane import registry
    from controlplane.command import CommandError
    from controlplane.commands.policy import _value

    chosen: list[Any] = []
    for part in text.split(","):
        prefix = registry.PREFIX if part.strip().startswith(registry.PREFIX) else ""
        name, *options = part.strip().removeprefix(prefix).split(":")
        own = [policy for policy in scenario.policies if part.strip() in (policy.title, policy.name)]
        if own:
            chosen += own
            continue
        spec: dict[str, Any] = {"name": prefix + name}
        for option in options:
            key, equals, value = option.partition("=")
            if not key or not equals or not value:
                raise CommandError(f"expected --policies NAME:OPTION=VALUE, not '{part}'", status=2)
            spec[key] = _value(option, value)
        chosen.append(_told_as_its_base(scenario, spec))
    return tuple(chosen)


def _told_as_its_base(scenario: Scenario, spec: dict[str, Any]) -> dict[str, Any]:
    """Return a policy file with the weights that the scenario's own entry of its base policy is told: both are to know
    the same. What is no such file stays."""
    from controlplane import registry
    from controlplane.learned.model import find
    from controlplane.learned.policy_file import PolicyFileError, read

    file = registry.spec_of(spec["name"]).get("file")
    if file is None or "weights" in spec:
        return spec
    try:
        base = spec.get("base") or read(find(file))[1].base_name
    except PolicyFileError:
        return spec  # told when the policy is made
    told = {policy.weights for policy in scenario.policies if policy.name == base}
    return spec | {"weights": told.pop()} if len(told) == 1 else spec


def _execute(scenario: Scenario, workers: int | None) -> Sequence[Run]:
    """Make all runs, with a progress bar on standard error where that is a terminal."""
    from concurrent.futures.process import BrokenProcessPool

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from controlplane.command import CommandError
    from controlplane.simulation.pool import cores, execute_all
    from controlplane.simulation.runs import jobs_of

    jobs = jobs_of(scenario)
    console = Console(stderr=True)
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    runs = []
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=len(jobs))
            for finished in execute_all(jobs, workers or cores()):
                runs.append(finished)
                progress.advance(task)
    except BrokenProcessPool:
        raise CommandError("a run was ended from outside (out of memory?)") from None
    except ValueError as error:  # the engine or a policy refused the world
        raise CommandError(str(error)) from None
    return runs
