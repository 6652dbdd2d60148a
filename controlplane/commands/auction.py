"""`vickrey auction`: the round-based auction simulation with its plots and ledger, and the check of a ledger."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlplane.auction.rounds import Simulation
    from controlplane.auction.scenario import Scenario

DESCRIPTION = """\
Simulate servers that bid for tasks round after round, split them in coalitions, work, and learn their sensitivity.
Prints social welfare, fairness, auction events and what became of each SLA level. What is not given is chosen so that
the peaks are busy and the troughs idle, whatever the number of servers and tasks.

`vickrey auction verify FILE` checks a ledger: exit status 1, and the record, when one was altered, removed or moved; 3
when the ledger is whole, but --anchor may be of a record that was rotated away."""

EXAMPLES = """
  vickrey auction                                            8 servers, 500 rounds
  vickrey auction --rounds 2000 --servers 20 --tasks 60 --mode qlearning --seed 7 --out auction
                                                             also PNGs, auction/report.html, CSV and JSON
  vickrey auction --scenario examples/auction.yaml --split shapley
  vickrey auction --ledger events.jsonl --ledger-auctions 1 && vickrey auction verify events.jsonl
"""

MODES = ("off", "continuous", "qlearning", "bandit", "ucb1", "thompson", "dqn")
_BATCH_SECONDS = 0.1  # between two movements of the progress bar
_UNCONFIRMED = 3  # exit status: nothing is wrong with what is there, and what was asked can no longer be checked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_json

    parser.add_argument(
        "what", nargs="*", metavar="FILE.yaml | verify LEDGER", help="a scenario; or: check this ledger"
    )
    parser.add_argument("--scenario", metavar="FILE", help="a YAML file; other options take precedence over it")
    parser.add_argument("--rounds", type=int, metavar="R", help="rounds (default 500)")
    parser.add_argument("--servers", type=int, metavar="N", help="servers (default 8)")
    parser.add_argument("--tasks", type=float, metavar="M", help="tasks in an average round (default two a server)")
    parser.add_argument("--amplitude", type=float, metavar="A", help="of the sine about that (default half of it)")
    parser.add_argument("--period", type=float, metavar="P", help="of the sine, in rounds (default 50)")
    parser.add_argument("--mode", choices=MODES, help="how sensitivities are learned (default continuous)")
    parser.add_argument("--seed", type=int, metavar="S", help="of everything random (default 1)")
    parser.add_argument("--split", choices=("equal", "shapley"), help="of a task in a coalition (default equal)")
    parser.add_argument("--partners", type=int, metavar="K", help="of an overloaded winner, at most (default 1)")
    parser.add_argument("--utilisation", type=float, metavar="RHO", help="mean work over processing rate (default 0.9)")
    parser.add_argument("--epsilon", type=float, metavar="E", help="exploration of the learning modes (default 0.1)")
    parser.add_argument("--learning-rate", type=float, metavar="L", help="of mode continuous (default 0.1)")
    parser.add_argument("--noise", type=float, metavar="X", help="greatest random part of a bid (default 0.1)")
    parser.add_argument("--no-sla", action="store_true", help="ignore SLA levels in the auctions")
    parser.add_argument(
        "--out", metavar="DIR", help="write plots, report.html, rounds.csv, servers.csv, history.csv, result.json there"
    )
    parser.add_argument("--csv", action="store_true", help="print a row of figures a round instead of the summary")
    parser.add_argument("--ledger", metavar="FILE", help="append every round to this tamper-evident ledger")
    parser.add_argument("--ledger-auctions", type=float, metavar="SHARE", help="and a share of the auctions, 0 … 1")
    parser.add_argument("--anchor", metavar="HASH", help="verify: a record's hash, noted elsewhere, that must be there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from controlplane.command import CommandError

    what: list[str] = args.what
    if what and what[0] == "verify":
        if len(what) != 2:
            raise CommandError("which ledger? vickrey auction verify FILE", status=2)
        if args.anchor is not None and not re.fullmatch("[0-9a-fA-F]{64}", args.anchor):
            raise CommandError(f"--anchor: expected 64 hexadecimal digits, not {args.anchor!r}", status=2)
        return _verify(what[1], args.anchor, args.json)
    if args.anchor is not None:
        raise CommandError("--anchor belongs to: verify LEDGER", status=2)
    if len(what) > 1 or (what and args.scenario):
        raise CommandError("expected one scenario file, or: verify LEDGER", status=2)
    if args.json and args.csv:
        raise CommandError("--json and --csv both want standard output: choose one", status=2)
    return _simulate(args, what[0] if what else args.scenario)


def _verify(path: str, anchor: str | None, as_json: bool) -> int:
    from controlplane.auction.ledger import LedgerError, verify
    from controlplane.command import CommandError, print_json

    try:
        verdict = verify(path, anchor)
    except (OSError, LedgerError) as error:
        text = f"{path}: {(error.strerror or str(error)).lower()}" if isinstance(error, OSError) else str(error)
        raise CommandError(text) from None
    if as_json:
        from dataclasses import asdict

        print_json(asdict(verdict) | {"file": verdict.file or path})
    else:
        print(f"{path}: {verdict}" if verdict.ok else verdict)  # a fault names its file
        for note in verdict.notes:
            print(f"note: {note}")
    return 0 if verdict.ok else _UNCONFIRMED if verdict.unconfirmed else 1


def _simulate(args: argparse.Namespace, path: str | None) -> int:
    from controlplane.auction import outputs
    from controlplane.command import CommandError, print_json

    scenario = _changed(_load(path), args)
    share = _ledger_share(args)
    folder = outputs.Folder(args.out) if args.out is not None else None
    clock = Clock()
    ledger = _open_ledger(args.ledger, clock)
    try:
        simulation = clock.simulation = _begin(scenario, ledger, share)
        print(f"seed {scenario.seed}", file=sys.stderr)
        seconds = _execute(simulation, args.quiet)
        if ledger is not None:
            ledger.append("end", rounds=simulation.metrics.done, interrupted=_cut_short(simulation))
    except OSError as error:
        raise CommandError(f"{error.filename or args.ledger}: {(error.strerror or str(error)).lower()}") from None
    finally:
        if ledger is not None:
            ledger.close()
    found = outputs.document(simulation, seconds)
    written = folder.write(simulation, found) if folder is not None else []
    if args.json:
        print_json(found)
    elif args.csv:
        sys.stdout.writelines(outputs.rounds_csv(simulation))
    else:
        _print(found)
        for file in written:
            if file.name in ("overview.png", "report.html"):
                print(file)
    if _cut_short(simulation):
        done, rounds = simulation.metrics.done, scenario.rounds
        print(f"vickrey auction: interrupted after {done:,} of {rounds:,} rounds", file=sys.stderr)
        return 1
    return 0


def _cut_short(simulation: Simulation) -> bool:
    return simulation.metrics.done < simulation.scenario.rounds


def _load(path: str | None) -> Scenario:
    from controlplane.auction.scenario import Scenario, load
    from controlplane.command import CommandError
    from controlplane.config_errors import ConfigError

    if path is None:
        return Scenario()
    try:
        return load(path)
    except ConfigError as error:
        raise CommandError(str(error), details={"problems": error.as_json()}) from None


def _changed(scenario: Scenario, args: argparse.Namespace) -> Scenario:
    """Return the scenario with what the command line says instead."""
    from pydantic import ValidationError

    from controlplane.auction.scenario import Scenario, mistakes
    from controlplane.command import CommandError
    from controlplane.simulation.scenario_file import explain

    document = scenario.model_dump()
    given: dict[tuple[str, ...], tuple[str, Any]] = {}

    def put(option: str, value: Any, *path: str) -> None:
        if value is None:
            return
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        given[path] = (option, value)

    put("--rounds", args.rounds, "rounds")
    put("--seed", args.seed, "seed")
    put("--mode", args.mode, "mode")
    put("--utilisation", args.utilisation, "utilisation")
    put("--tasks", args.tasks, "tasks", "base")
    put("--amplitude", args.amplitude, "tasks", "amplitude")
    put("--period", args.period, "tasks", "period")
    put("--split", args.split, "auction", "split")
    put("--partners", args.partners, "auction", "partners")
    put("--noise", args.noise, "auction", "noise")
    put("--no-sla", False if args.no_sla else None, "auction", "sla")
    put("--epsilon", args.epsilon, "learning", "epsilon")
    put("--learning-rate", args.learning_rate, "learning", "learning_rate")
    if args.servers is not None:
        if len(scenario.servers) > 1:
            raise CommandError(
                "--servers: the scenario has several groups of servers: give their counts there", status=2
            )
        document["servers"] = ({**scenario.servers[0].model_dump(), "count": args.servers},)
    try:
        changed = Scenario.model_validate(document)
    except ValidationError as errors:
        lines = []
        for error in errors.errors():
            path = tuple(str(part) for part in error["loc"])
            option = "--servers" if path[0] == "servers" else given.get(path, (".".join(path), None))[0]
            lines.append(f"{option}: {explain(error, error['loc'], document, Scenario)}")
        raise CommandError("\n".join(lines), status=2) from None
    lines = [
        f"{given.get(tuple(map(str, path)), ('.'.join(map(str, path)),))[0]}: {what}"
        for path, what in mistakes(changed)
    ]
    if lines:
        raise CommandError("\n".join(lines), status=2)
    return changed


def _ledger_share(args: argparse.Namespace) -> float:
    from controlplane.command import CommandError

    if args.ledger_auctions is None:
        return 0.0
    if args.ledger is None:
        raise CommandError("--ledger-auctions needs --ledger FILE", status=2)
    if not 0.0 <= args.ledger_auctions <= 1.0:
        raise CommandError(f"expected --ledger-auctions from 0 to 1, not {args.ledger_auctions:g}", status=2)
    share: float = args.ledger_auctions
    return share


class Clock:
    """Time as the ledger has it: rounds that are done, so that the same seed gives the same file."""

    simulation: Simulation | None = None

    def __call__(self) -> float:
        return float(self.simulation.metrics.done) if self.simulation is not None else 0.0


def _open_ledger(path: str | None, clock: Clock) -> Any:
    from controlplane.command import CommandError

    if path is None:
        return None
    from controlplane.auction.ledger import Ledger, LedgerError

    try:
        return Ledger(path, clock=clock)
    except LedgerError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _begin(scenario: Scenario, ledger: Any, share: float) -> Simulation:
    from controlplane.auction.rounds import Simulation
    from controlplane.command import CommandError

    try:
        simulation = Simulation(scenario, ledger, share)
    except RuntimeError as error:  # torch is missing
        raise CommandError(str(error)) from None
    except MemoryError:
        raise CommandError("so many rounds and servers do not fit into memory") from None
    if ledger is not None:
        ledger.append("begin", scenario=scenario.model_dump(mode="json"))
    return simulation


def _execute(simulation: Simulation, quiet: bool) -> float:
    """Run all rounds, or until Ctrl-C, which ends after the round in hand; return the seconds it took."""
    import signal
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        if stopped:  # a second one: at once
            raise KeyboardInterrupt
        stopped = True

    console = Console(stderr=True)
    columns = (TextColumn("auction"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    began = moved = time.perf_counter()
    before = signal.signal(signal.SIGINT, stop)
    try:
        hidden = quiet or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
            task = progress.add_task("", total=simulation.scenario.rounds)
            while not stopped and simulation.step():
                if time.perf_counter() - moved > _BATCH_SECONDS:
                    moved = time.perf_counter()
                    progress.update(task, completed=simulation.metrics.done)
    finally:
        signal.signal(signal.SIGINT, before)
    return time.perf_counter() - began


def _print(found: dict[str, Any]) -> None:
    from controlplane.auction import outputs
    from controlplane.table import print_table

    print(outputs.heading(found))
    print()
    print_table(*outputs.summary_table(found))
    print()
    print_table(*outputs.class_table(found))
    print()
    print_table(*outputs.server_table(found))
    left = len(found["servers"]) - outputs.ROWS
    if left > 0:
        print(f"… and {left:,} more; --json or --out DIR has all of them")
