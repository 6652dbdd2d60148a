"""The `vickrey` command: finds the subcommand, reads its arguments, runs it, and turns what went wrong into a status.

Exit status: 0, 1 (failed) or 2 (bad usage); `auction verify` has 3 for what cannot be known. Nothing is imported before
it is needed: `vickrey --help` costs argparse.
A subcommand is a file in controlplane/commands with `add_arguments(parser)` and `run(args) -> int`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from controlplane.command import CommandError, Parser, print_json

# name: (module, one line)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "the whole thing on embedded backends: balancer, controller, load, a live table"),
    "run": ("run", "run a balancer, from a configuration file or from arguments"),
    "check": ("check", "check a configuration file and print what it comes to"),
    "show-config": ("show_config", "print the effective configuration, defaults filled in"),
    "status": ("status", "show a running balancer: services, servers, completion times"),
    "top": ("top", "the same, live"),
    "policy": ("policy", "list, show, set or roll back policies"),
    "server": ("server", "list servers; drain, ready, maint, weight"),
    "sim": ("sim", "compare policies in the simulator: scenarios, seeds, confidence intervals, reports"),
    "train": ("train", "train a policy in the simulator: agents, scenarios, evaluations, checkpoints"),
    "eval": ("eval", "evaluate a policy against every heuristic at its tuned best; the promotion gate"),
    "reproduce": ("reproduce", "the predecessors' published comparisons, rebuilt in the simulator"),
    "compare": ("compare", "Vickrey beside HAProxy, nginx and Envoy on the same arrivals; a report with plots"),
    "auction": ("auction", "the round-based auction simulation, its plots and its tamper-evident ledger"),
    "reload": ("reload", "make a running balancer read its configuration file again"),
    "replay": ("replay", "send a trace to a running server or balancer, open loop, with a report"),
    "testbed": ("testbed", "real servers to balance over: Apache or Python, in namespaces under CPU quotas"),
    "trace": ("trace", "look at traces of arrivals, convert them, make them up"),
}


def _overview() -> Parser:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    parser = Parser(
        prog="vickrey",
        usage="vickrey COMMAND [ARGUMENT ...]",
        description="A load balancer that learns: every dispatch is a sealed-bid second-price auction.",
        epilog="\n".join(
            [
                "commands:",
                *lines,
                "",
                "examples:",
                "  vickrey demo                                        see it work, in a minute",
                "  vickrey run --listen :8080 --server host:9001 --server host:9002",
                "  vickrey run web.yaml",
                "",
                "`vickrey COMMAND --help` tells more about one of them.",
            ]
        ),
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


def _refuse(message: str) -> NoReturn:
    print(f"vickrey: {message}", file=sys.stderr)
    raise SystemExit(2)


def _unknown(name: str) -> NoReturn:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    _refuse(f"no command is called '{name}'{hint}; `vickrey --help` lists them")


def _run(name: str, arguments: Sequence[str]) -> int:
    module_name, summary = COMMANDS[name]
    module = import_module(f"controlplane.commands.{module_name}")
    epilog: str = getattr(module, "EXAMPLES", "")
    parser = Parser(
        prog=f"vickrey {name}",
        description=getattr(module, "DESCRIPTION", summary[0].upper() + summary[1:] + "."),
        epilog="examples:\n" + epilog.strip("\n") if epilog else None,
        conflict_handler="resolve",
    )
    module.add_arguments(parser)
    args = parser.parse_args(arguments)
    wants_json = getattr(args, "json", False)
    try:
        status: int = module.run(args)
    except CommandError as error:
        for line in str(error).splitlines():
            print(line if error.details.get("problems") else f"vickrey {name}: {line}", file=sys.stderr)
        if wants_json:
            print_json({"error": str(error), **error.details})
        return error.status
    return status


def _print_version() -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"vickrey {version('vickrey')}")
    except PackageNotFoundError:
        print("vickrey, run from a source tree that was never installed")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and not arguments[0].startswith("-"):
            if arguments[0] not in COMMANDS:
                _unknown(arguments[0])
            status = _run(arguments[0], arguments[1:])
        else:
            parser = _overview()
            args = parser.parse_args(arguments)
            if args.command:
                _refuse(f"the command comes first: vickrey {args.command} ...")
            if args.version:
                return _print_version()
            parser.print_help(sys.stderr)
            return 2
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 1
    except BrokenPipeError:  # `vickrey status | head`: the reader has what it wanted
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
