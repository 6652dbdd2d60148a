"""`vickrey compare`: Vickrey, HAProxy, nginx and Envoy before the same real servers, on the same arrivals."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.compare.runner import Comparison
    from testbed.compare.scenario import Scenario
    from testbed.interrupts import Deferred

DESCRIPTION = """\
Run a scenario on real servers through every balancer, in interleaved rounds on identical arrivals and demands, and
put the flow completion times side by side: with paired ratios, confidence intervals and simulated references.
Each balancer is given a configuration written from the same description of the service, at its best setting; those
that are told the true weights or worker counts say so in their names."""

EXAMPLES = """
  vickrey compare --list                              the scenarios that come with Vickrey
  vickrey compare unequal-speeds --quick              one short round: a minute or two
  vickrey compare unequal-speeds --with haproxy,nginx,envoy --rounds 5 --out unequal
  vickrey compare failure --variants "vickrey adaptive,haproxy leastconn,nginx random two least_conn"
  vickrey compare unequal-speeds --show > mine.yaml   a file to begin with
  vickrey compare mine.yaml

The report (report.html, and the same as Markdown, CSV and JSON) is written to --out, by default compare-SCENARIO.
Exit status 1: a balancer that is installed did not start, or has no valid round.
"""

QUICK_S = 6.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_json

    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="name of a shipped scenario, or a YAML file")
    parser.add_argument("--list", action="store_true", help="list the shipped scenarios")
    parser.add_argument("--show", action="store_true", help="print the scenario's file and do nothing")
    parser.add_argument(
        "--with", dest="programs", metavar="P,P,…", help="only these competitors: haproxy, nginx, envoy (default: all)"
    )
    parser.add_argument("--variants", metavar="V,V,…", help="these instead, as 'haproxy leastconn+weights+maxconn'")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (default: the scenario's)")
    parser.add_argument("--seconds", metavar="TIME", help="length of the counted part of a run; events move along")
    parser.add_argument("--load", type=float, metavar="RHO", help="offered load, a share of the capacity")
    parser.add_argument("--seed", type=int, metavar="S", help="of arrivals and demands")
    parser.add_argument("--out", metavar="DIR", help="folder of the report (default compare-SCENARIO)")
    parser.add_argument("--quick", action="store_true", help=f"one round of {QUICK_S:g} s: to see it work")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from controlplane.command import CommandError, print_json

    if args.list:
        return _list(args.json)
    if not args.scenario:
        raise CommandError("which scenario? A name from `vickrey compare --list`, or a YAML file", status=2)
    if args.show:
        return _show(args.scenario)
    name = _stem(args.scenario)
    scenario = _changed(_load(args.scenario), args)
    needs_plotly()

    from testbed.compare.outcome import document
    from testbed.compare.report import Writer
    from testbed.interrupts import Deferred

    writer = Writer(args.out or f"compare-{name}")
    with Deferred() as signals:  # until the report is whole: a second Ctrl-C must not cost what was measured
        found = _execute(scenario, signals)
        outcome = document(name, found)
        if found.runs:
            writer.write(outcome, found)
            outcome["report"] = str(writer.page)
        elif found.interrupted:
            writer.remove()
        if found.interrupted:
            signals.forget()
    if args.json:
        print_json(outcome)
    else:
        _print(outcome)
    if found.interrupted or not found.runs:
        return 1
    bad = [one for one in outcome["balancers"] if not one["valid_rounds"]]
    return 1 if bad or found.failed else 0


def needs_plotly() -> None:
    """Say before the work that the report cannot be drawn."""
    from importlib.util import find_spec

    from controlplane.command import CommandError

    if find_spec("plotly") is None:
        raise CommandError("needs vickrey[testbed]: plotly is not installed (pip install 'vickrey[testbed]')")


def _execute(scenario: Scenario, signals: Deferred) -> Comparison:
    from controlplane.command import CommandError
    from testbed.compare.runner import Runner
    from testbed.processes import StartError

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    say(f"this takes about {takes_s(scenario) / 60:.0f} minutes; Ctrl-C ends it with what there is by then")
    try:
        return Runner(scenario, say=say).run(signals)
    except (StartError, OSError) as error:
        raise CommandError(str(error)) from None


def takes_s(scenario: Scenario) -> float:
    from testbed.compare.measure import DRAIN_S
    from testbed.compare.runner import DIRECT_S

    one = scenario.warmup + scenario.seconds + DRAIN_S / 2 + 2.0
    return scenario.rounds * (len(scenario.variants) * one + DIRECT_S + 2.0)


def _print(outcome: dict[str, Any]) -> None:
    from controlplane.table import print_table
    from testbed.compare import tables

    print(f"{outcome['title']}\n{tables.heading(outcome)}\n")
    columns, rows = tables.main_table(outcome)
    if rows:
        # Two tables: one alone is wider than most terminals.
        cut = columns.index(next(column for column in columns if "×" in column))
        print_table(columns[:cut], [row[:cut] for row in rows])
        print()
        print_table([columns[0], *columns[cut:]], [[row[0], *row[cut:]] for row in rows])
    for table in (tables.verdict_table(outcome) if outcome["verdict"] else None, tables.kinds_table(outcome)):
        if table:
            print()
            print_table(*table)
    for line in outcome["notes"]:
        print(f"\n{line}")
    if "report" in outcome:
        print(f"\n{outcome['report']}")


def _list(as_json: bool) -> int:
    from controlplane.command import print_json
    from controlplane.table import print_table
    from testbed.compare.scenario_file import library, load

    scenarios = [(name, load(name)) for name in library()]
    if as_json:
        print_json([{"name": n, "title": s.title, "shows": " ".join(s.shows.split())} for n, s in scenarios])
    else:
        print_table(
            ["SCENARIO", ">ABOUT MIN", "WHAT IT SHOWS"],
            [[name, f"{takes_s(scenario) / 60:.0f}", scenario.title] for name, scenario in scenarios],
        )
    return 0


def _load(name: str) -> Scenario:
    from controlplane.command import CommandError
    from controlplane.config_errors import ConfigError
    from testbed.compare.scenario_file import load

    try:
        return load(name)
    except ConfigError as error:
        raise CommandError(str(error), details={"problems": error.as_json()}) from None


def _show(name: str) -> int:
    from controlplane.command import CommandError
    from controlplane.config_errors import ConfigError
    from testbed.compare.scenario_file import find

    try:
        sys.stdout.write(find(name).read_text(encoding="utf-8"))
    except ConfigError as error:
        raise CommandError(str(error), details={"problems": error.as_json()}) from None
    except OSError as error:
        raise CommandError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from None
    return 0


def _stem(argument: str) -> str:
    from pathlib import Path

    return Path(argument).stem


def _changed(scenario: Scenario, args: argparse.Namespace) -> Scenario:
    """Return the scenario with what the command line says instead. CommandError (bad usage) for what cannot be."""
    from controlplane.command import CommandError
    from controlplane.config_values import parse_duration

    def refuse(what: str) -> CommandError:
        return CommandError(what, status=2)

    given: dict[str, Any] = {}
    if args.rounds is not None:
        if not 1 <= args.rounds <= 100:
            raise refuse(f"expected --rounds from 1 to 100, not {args.rounds}")
        given["rounds"] = args.rounds
    if args.seed is not None:
        if args.seed < 0:
            raise refuse(f"expected --seed of at least 0, not {args.seed}")
        given["seed"] = args.seed
    if args.load is not None:
        if not 0 < args.load <= 10:
            raise refuse(f"expected --load as a share of the capacity, like 0.8, not {args.load:g}")
        factor = args.load / scenario.load
        steps = tuple(step.model_copy(update={"load": step.load * factor}) for step in scenario.profile)
        given |= {"load": args.load, "profile": steps}
    given["variants"] = _variants(scenario, args)
    if args.quick and args.rounds is None:
        given["rounds"] = 1
    changed = scenario.model_copy(update=given)
    seconds = QUICK_S if args.quick else None
    if args.seconds is not None:
        try:
            seconds = parse_duration(args.seconds if not args.seconds.isdigit() else f"{args.seconds}s")
        except ValueError as error:
            raise refuse(f"--seconds: {error}") from None
        if not 1 <= seconds <= 86_400:
            raise refuse(f"expected --seconds of at least 1s, not {args.seconds}")
    return changed.lasting(seconds) if seconds is not None else changed


def _variants(scenario: Scenario, args: argparse.Namespace) -> Any:
    """The scenario's, or those named; without the programs that --with does not name."""
    from controlplane.command import CommandError
    from controlplane.config_errors import did_you_mean, either
    from testbed.compare import variant

    chosen = scenario.variants
    if args.variants is not None:
        try:
            named = [variant.parse(part) for part in args.variants.split(",")]
        except ValueError as error:
            raise CommandError(f"--variants: {error}", status=2) from None
        chosen = tuple({one.name: one for one in named}.values())
    if args.programs is not None:
        wanted = [part.strip() for part in args.programs.split(",") if part.strip()]
        known = variant.PROGRAMS
        for name in wanted:
            if name not in known:
                what = f"--with: expected {either(known[1:])}, not '{name}'{did_you_mean(name, known)}"
                raise CommandError(what, status=2)
        chosen = tuple(one for one in chosen if one.program in ("vickrey", *wanted))
        without = [name for name in wanted if not any(one.program == name for one in chosen)]
        if without:
            raise CommandError(f"--with: the scenario has no setting of {', '.join(without)}; see --variants", status=2)
    return chosen
