"""`vickrey reproduce`: MARLLB's and the Markov-potential-game paper's comparisons, rebuilt in the simulator."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlplane.evaluation.published import Case

DESCRIPTION = """\
Rebuild a paper's comparison in the simulator, on its two topologies and its traffic: mean, p90 and p99 of every method
beside the published means. Learned methods come from policy files: FOLDER/small-qmix.safetensors or
FOLDER/qmix.safetensors, and likewise large-, ssac, isac, mpg. One that is not there is "not trained".
docs/marllb.md has the assumptions, and what agrees and what does not."""

EXAMPLES = """
  vickrey reproduce marllb                              some minutes; learned methods not trained
  vickrey reproduce marllb --policies trained --train   trains what is missing, five minutes each
  vickrey reproduce mpg --policies trained --out mpg    also report.html, result.json and runs.csv
  vickrey reproduce marllb --cases small-518.8 --seeds 3 --duration 20
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_json

    parser.add_argument("paper", choices=("marllb", "mpg"), help="arXiv 2201.11727, or 2206.01451")
    parser.add_argument("--policies", metavar="FOLDER", help="folder of trained policies")
    parser.add_argument("--train", action="store_true", help="train what is missing there; needs vickrey[rl]")
    parser.add_argument("--train-time", default="5m", metavar="T", help="for each training (default 5m)")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="a hyper-parameter of the trainings")
    parser.add_argument("--cases", metavar="C,C,…", help="these cases of the paper")
    parser.add_argument(
        "--seeds", default="10", metavar="N", help="so many paired seeds (default 10), or a list: 7,8,9"
    )
    parser.add_argument("--duration", type=float, default=60.0, metavar="S", help="seconds of traffic (default 60)")
    parser.add_argument("--workers", type=int, metavar="N", help="runs at a time (default: all cores)")
    parser.add_argument("--out", metavar="DIR", help="write report.html, result.json and runs.csv there")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from controlplane.command import CommandError, print_json
    from controlplane.commands.eval import seeds_from, with_progress
    from controlplane.evaluation.reproduce import Request, reproduce
    from controlplane.simulation.pool import cores

    if args.workers is not None and args.workers < 1:
        raise CommandError(f"expected --workers of at least 1, not {args.workers}", status=2)
    if not 1.0 <= args.duration <= 36_000.0:
        raise CommandError(f"expected --duration from 1 to 36000 seconds, not {args.duration:g}", status=2)
    if args.train and args.policies is None:
        raise CommandError("--train: where to? Name a folder with --policies", status=2)
    folder = None if args.policies is None else Path(args.policies)
    if folder is not None and not args.train and not folder.is_dir():
        raise CommandError(f"--policies: {folder}: no such folder", status=2)
    cases = _cases(args.paper, args.cases)
    request = Request(args.paper, cases, seeds_from(args.seeds), args.duration, folder)
    writer = None
    if args.out is not None:
        from controlplane.evaluation.reproduce_page import Writer

        writer = Writer(args.out)
    if args.train and folder is not None:
        _train(folder, cases, args.train_time, args.set)
    found = with_progress(lambda stage: reproduce(request, args.workers or cores(), stage))
    if writer is not None:
        writer.write(found)
    if args.json:
        print_json(found)
        return 0
    _print(found)
    if writer is not None:
        print(f"\n{writer.page}")
    return 0


def _print(found: dict[str, Any]) -> None:
    from controlplane.commands.eval import print_under
    from controlplane.evaluation import reproduce

    print(reproduce.heading(found))
    for case in found["cases"]:
        print_under(reproduce.case_heading(case), reproduce.case_table(case))
    lines = reproduce.agreement(found)
    if lines:
        print("\n" + "\n".join(lines))


def _cases(paper: str, text: str | None) -> Sequence[Case]:
    from controlplane.command import CommandError
    from controlplane.config_errors import did_you_mean
    from controlplane.evaluation.published import PAPERS

    known = {case.name: case for case in PAPERS[paper][1]}
    if text is None:
        return tuple(known.values())
    chosen = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in chosen:
        if name not in known:
            near = did_you_mean(name, known)
            raise CommandError(f"--cases: {paper} has none called '{name}'{near}; it has {', '.join(known)}", status=2)
    return [known[name] for name in chosen]


def _train(folder: Path, cases: Sequence[Case], time: str, settings: Sequence[str]) -> None:
    from controlplane.command import CommandError
    from controlplane.config_values import duration
    from controlplane.evaluation.reproduce_train import train

    try:
        seconds = duration(1.0)(time)
    except ValueError as error:
        raise CommandError(f"--train-time: {error}", status=2) from None
    train(folder, cases, seconds, settings, lambda text: print(text, file=sys.stderr, flush=True))
