"""`vickrey eval`: policies against every heuristic at its tuned best, in all scenarios of a suite; the gate."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from controlplane.evaluation.contest import Contest, Stage
    from controlplane.evaluation.rivals import Rival
    from controlplane.evaluation.suite import Suite
    from controlplane.simulation.scenario import Policy

DESCRIPTION = """\
Evaluate policies in the simulator: every scenario of a suite, paired seeds, against every heuristic at its tuned best
and against what no proxy can reach. Ratios come with 95 % confidence intervals. --gate decides whether a policy may
ship: nowhere more than 1 % worse than the best heuristic, somewhere better, by intervals corrected for their number."""

EXAMPLES = """
  vickrey eval policy.safetensors                       a trained policy in the default suite, ten minutes on two cores
  vickrey eval policy.safetensors --quick               a first look, in under two
  vickrey eval a.safetensors b.safetensors --gate --out report
  vickrey eval gsed:c=0.3 --suite heterogeneous-4x      any policy, one scenario
  vickrey eval mine.yaml --suite farm.yaml --seeds 20   a policy's file, a suite of one's own (docs/learning.md)
  vickrey eval policy.safetensors --gate --record       the verdict goes into the policy's manifest
  vickrey eval --list
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_json

    what = "a policy file, a policy's name with options (gsed:c=0.3), or a YAML file like a `policy:` mapping"
    parser.add_argument("policies", nargs="*", metavar="POLICY", help=what)
    parser.add_argument("--suite", default="default", metavar="SUITE", help="a suite, a suite's file, or a scenario")
    parser.add_argument("--list", action="store_true", help="list suites and their scenarios")
    parser.add_argument("--seeds", metavar="N", help="so many paired seeds (default 10), or a list: 7,8,9")
    parser.add_argument("--only", metavar="S,S,…", help="these scenarios of the suite")
    parser.add_argument("--against", metavar="P,P,…", help="these heuristics (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer seeds, shorter runs, the strong heuristics only")
    parser.add_argument(
        "--metric", default="mean", choices=("mean", "p99", "slowdown_p99"), help="that the gate judges"
    )
    parser.add_argument("--gate", action="store_true", help="exit with 1 when a policy does not pass")
    parser.add_argument("--record", action="store_true", help="write the verdict into the manifest of each policy file")
    parser.add_argument("--retune", action="store_true", help="tune the heuristics anew, whatever is cached")
    parser.add_argument("--workers", type=int, metavar="N", help="runs at a time (default: all cores)")
    parser.add_argument("--out", metavar="DIR", help="write report.html, result.json and runs.csv there")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from controlplane.command import CommandError, print_json

    if args.list:
        return _list(args.json)
    if not args.policies:
        raise CommandError("which policy? A policy file, or a name from `vickrey policy list`", status=2)
    if args.workers is not None and args.workers < 1:
        raise CommandError(f"expected --workers of at least 1, not {args.workers}", status=2)
    contest = _contest(args)
    files = _files(contest.candidates) if args.record else {}
    writer = None
    if args.out is not None:
        from controlplane.evaluation.report import Writer

        writer = Writer(args.out)
    found = _hold(contest, args.workers)
    if writer is not None:
        writer.write(found)
    for policy, path in files.items():
        _record(found, policy, path)
    if args.json:
        print_json(found)
    else:
        _print(found)
        if writer is not None:
            print(f"\n{writer.page}")
    return 1 if args.gate and not all(row["passed"] for row in found["gate"]) else 0


def _print(found: dict[str, Any]) -> None:
    from controlplane.evaluation import tables

    print(tables.heading(found))
    for gate in found["gate"]:
        print_under(gate["policy"], tables.candidate_table(found, gate["policy"]))
    recovery = tables.recovery_table(found)
    if recovery:
        print_under("Recovery: mean of the first 200 service times after a capacity swap, ms", recovery)
    print_under("What no proxy can reach: means, ms", tables.reference_table(found))
    print()
    for gate in found["gate"]:
        print("\n".join(tables.verdict_lines(gate)))
    for line in tables.failures(found):
        print(line)


def print_under(title: str, table: tuple[list[str], list[list[str]]]) -> None:
    """Print a table under its title, in several of fewer columns where the terminal is narrow."""
    from controlplane.commands.sim import print_fitting

    print(f"\n{title}")
    print_fitting(*table)


def _list(as_json: bool) -> int:
    from controlplane.command import print_json
    from controlplane.evaluation.suite import library, load
    from controlplane.table import print_table

    suites = [load(name) for name in library()]
    if as_json:
        print_json(
            [
                {"name": s.name, "title": s.title, "scenarios": [e.name for e in s.entries], "seeds": len(s.seeds)}
                for s in suites
            ]
        )
        return 0
    for suite in suites:
        rows = [[e.name, e.family, str(e.scenario.balancers.count), e.scenario.title] for e in suite.entries]
        print_table(["SCENARIO", "FAMILY", ">BALANCERS", "WHAT IT SHOWS"], rows, title=f"{suite.name}: {suite.title}")
    return 0


# What is asked for.


def _contest(args: argparse.Namespace) -> Contest:
    from controlplane.evaluation.contest import Contest, named

    suite = _suite(args)
    candidates = named([policy_of(text) for text in args.policies], args.policies)
    _check(suite, candidates)
    rivals, only = _rivals(args.against, args.quick), _only(suite, args.only)
    return Contest(suite, candidates, rivals, args.metric, args.quick, args.retune, only)


def _suite(args: argparse.Namespace) -> Suite:
    from dataclasses import replace

    from controlplane.command import CommandError
    from controlplane.config_errors import ConfigError
    from controlplane.evaluation.suite import load

    try:
        suite = load(args.suite)
    except ConfigError as error:
        raise CommandError(str(error), details={"problems": error.as_json()}) from None
    if args.seeds is not None:
        suite = replace(suite, seeds=seeds_from(args.seeds))
        if set(suite.seeds) & set(suite.tuning_seeds):
            raise CommandError("--seeds: expected others than those on which heuristics are tuned", status=2)
    return suite


def seeds_from(text: str) -> tuple[int, ...]:
    """Return the seeds that --seeds asks for."""
    from controlplane.command import CommandError
    from controlplane.evaluation.suite import seeds_of

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise CommandError(f"expected --seeds as a number or a list like 7,8,9, not '{text}'", status=2) from None
    try:
        return seeds_of(numbers if "," in text else numbers[0])
    except ValueError as error:
        raise CommandError(f"--seeds: {error}", status=2) from None


def _only(suite: Suite, text: str | None) -> list[str] | None:
    from controlplane.command import CommandError
    from controlplane.config_errors import did_you_mean

    if text is None:
        return None
    known = [entry.name for entry in suite.entries]
    chosen = [name.strip() for name in text.split(",")]
    for name in chosen:
        if name not in known:
            near = did_you_mean(name, known)
            raise CommandError(f"--only: no scenario of the suite is called '{name}'{near}", status=2)
    return chosen


def _rivals(text: str | None, quick: bool) -> Sequence[Rival]:
    from controlplane import registry
    from controlplane.command import CommandError
    from controlplane.config_errors import did_you_mean
    from controlplane.evaluation.rivals import BY_NAME, RIVALS

    if text is None:
        return [rival for rival in RIVALS if rival.strong or not quick]
    chosen = [registry.canonical(name.strip()) for name in text.split(",")]
    for name in chosen:
        if name not in BY_NAME:
            near = did_you_mean(name, BY_NAME)
            raise CommandError(
                f"--against: no heuristic is called '{name}'{near}; they are {', '.join(BY_NAME)}", status=2
            )
    return [BY_NAME[name] for name in dict.fromkeys(chosen)]


def policy_of(text: str) -> Policy:
    """Return the policy that an argument names. Raises CommandError."""
    import os

    from pydantic import ValidationError

    from controlplane import registry
    from controlplane.command import CommandError
    from controlplane.commands.policy import _from_file, _value
    from controlplane.simulation.scenario import Policy
    from controlplane.simulation.scenario_file import explain

    spec: dict[str, Any]
    if text.endswith((".yaml", ".yml", ".json")):
        spec = registry.absolute(_from_file(text), os.path.dirname(text))
    elif text.startswith(registry.PREFIX) or text.endswith(registry.SUFFIX):
        spec = registry.spec_of(text) | {"label": _stem(text)}
    else:
        name, *options = text.split(":")
        spec = registry.spec_of(name)
        spec |= {"label": name} if spec["name"] != name else {}
        for option in options:
            key, equals, value = option.partition("=")
            if not key or not equals or not value:
                raise CommandError(f"expected POLICY as NAME:OPTION=VALUE, not '{text}'", status=2)
            spec[key] = _value(option, value)
    try:
        return Policy.model_validate(spec)
    except ValidationError as errors:
        lines = [f"{text}: {explain(error, error['loc'], spec)}" for error in errors.errors()]
        raise CommandError("\n".join(lines), status=2) from None


def _stem(path: str) -> str:
    from pathlib import Path

    return Path(path.removeprefix("shipped:")).stem


def _check(suite: Suite, candidates: Sequence[Policy]) -> None:
    """Refuse policies whose options make no sense, before any work."""
    from controlplane.command import CommandError
    from controlplane.simulation.scenario import mistakes

    scenario = suite.entries[0].scenario.model_copy(update={"policies": tuple(candidates)})
    lines = [what for path, what in mistakes(scenario) if path[0] == "policies"]
    if lines:
        raise CommandError("\n".join(lines), status=2)


# The work.


def _hold(contest: Contest, workers: int | None) -> dict[str, Any]:
    from concurrent.futures.process import BrokenProcessPool

    from controlplane.command import CommandError
    from controlplane.evaluation.contest import hold
    from controlplane.simulation.pool import cores

    try:
        return with_progress(lambda stage: hold(contest, workers or cores(), stage))
    except BrokenProcessPool:
        raise CommandError("a run was ended from outside (out of memory?)") from None
    except ValueError as error:  # nothing could be tuned, or the engine refused the world
        raise CommandError(str(error)) from None


def with_progress(work: Callable[[Stage], dict[str, Any]]) -> dict[str, Any]:
    """Return what the work does, with progress on standard error: a bar on a terminal, else a line now and then."""
    import sys
    import time

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def stage(name: str) -> Callable[[int, int], None]:
            task: Any = None
            began = last = time.monotonic()

            def progress(done: int, of: int) -> None:
                nonlocal task, last
                if console.is_terminal:
                    task = bar.add_task(name, total=of) if task is None else task
                    bar.update(task, completed=done)
                elif time.monotonic() - last > 15.0:
                    last = time.monotonic()
                    print(f"{name}: {done} of {of} runs, {last - began:.0f} s", file=sys.stderr, flush=True)

            return progress

        return work(stage)


# The verdict in a policy's manifest.


def _files(candidates: Sequence[Policy]) -> dict[str, str]:
    """Return the file of each candidate, by title. Raises CommandError where one is no file."""
    from controlplane import registry
    from controlplane.command import CommandError

    files = {policy.title: policy.options.get("file") for policy in candidates}
    shipped = {registry.PREFIX + name: str(path) for name, path in registry.shipped().items()}
    for title, path in files.items():
        if path not in shipped and (not isinstance(path, str) or not path.endswith(registry.SUFFIX)):
            raise CommandError(f"--record: {title} is no policy file with a manifest", status=2)
    return {title: shipped.get(str(path), str(path)) for title, path in files.items()}


def _record(found: dict[str, Any], policy: str, path: str) -> None:
    from dataclasses import replace

    from controlplane.command import CommandError
    from controlplane.evaluation.outcome import summary
    from controlplane.learned.policy_file import PolicyFileError, read, write

    try:
        parameters, manifest = read(path)
        write(path, parameters, replace(manifest, evaluation=summary(found, policy)))
    except PolicyFileError as error:
        raise CommandError(str(error)) from None
