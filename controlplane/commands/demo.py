"""`vickrey demo`: the balancer on embedded backends under load, from round robin to `adaptive`, as one watches."""

from __future__ import annotations

import argparse

EXAMPLES = """
  vickrey demo                     the three phases, with a live table
  vickrey demo --duration 20s      shorter
  vickrey demo --no-load           stays up and prints the URL to try by hand
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_json
    from testbed.demo import add_arguments as add_demo_arguments

    add_json(parser)
    add_demo_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from testbed.demo import main

    return main(args)
