"""`vickrey reload`: a running balancer reads its configuration file again, and drops no connection for it."""

from __future__ import annotations

import argparse

DESCRIPTION = """\
Make a running balancer read its configuration file again: servers, weights, policies, limits and
timeouts change in place. With a bad file the old configuration stays in force, its problems are printed,
and the exit status is 1."""

EXAMPLES = """
  vickrey reload
  vickrey check --strict web.yaml && vickrey reload
  vickrey reload --admin unix:/run/vickrey/admin.sock
"""

TIMEOUT_S = 30.0  # host names may have to be resolved


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_admin

    add_admin(parser)


def run(args: argparse.Namespace) -> int:
    from controlplane.client import Client
    from controlplane.command import print_json

    answer = Client(args.admin, timeout=TIMEOUT_S).post("reload")
    if args.json:
        print_json(answer)
        return 0
    changes = answer.get("changes", [])
    print("reloaded" + (":" if changes else ", nothing has changed"))
    for change in changes:
        print(f"  {change}")
    return 0
