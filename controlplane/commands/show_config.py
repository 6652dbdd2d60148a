"""`vickrey show-config`: the effective configuration of a file, to read or to keep."""

from __future__ import annotations

import argparse

DESCRIPTION = "Print the effective configuration of a file: defaults filled in, aliases and `0 = all` resolved."

EXAMPLES = """
  vickrey show-config web.yaml
  vickrey show-config --json web.yaml | jq .service.web.timeout
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_json

    parser.add_argument("config", metavar="CONFIG", help="configuration file")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from controlplane.command import print_json
    from controlplane.commands.check import as_yaml, load_or_fail

    tree = load_or_fail(args.config).as_tree()
    if args.json:
        print_json(tree)
    else:
        print(as_yaml(tree), end="")
    return 0
