"""`vickrey server`: list the servers of a running balancer and change their states and weights."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlplane.client import Client

DESCRIPTION = """\
List servers, or change them until the next restart. No connection is dropped:
drain gives a server no new flows, maint also stops its health checks, ready undoes both."""

EXAMPLES = """
  vickrey server list
  vickrey server drain big               before work on it
  vickrey server ready big
  vickrey server weight big 20           0 … 256; 0: no new flows
  vickrey server maint a b --service web
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_admin

    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    what = {
        "list": "the servers, their states and what they do",
        "drain": "no new flows; those in flight finish",
        "ready": "take flows again",
        "maint": "as drain, and no health checks",
        "weight": "set a weight, 0 … 256",
    }
    for action, text in what.items():
        sub = actions.add_parser(action, help=text, description=text[0].upper() + text[1:] + ".")
        if action == "weight":
            sub.add_argument("names", nargs=1, metavar="SERVER")
            sub.add_argument("weight", type=int, metavar="WEIGHT")
        elif action != "list":
            sub.add_argument("names", nargs="+", metavar="SERVER")
        sub.add_argument("--service", help="service that is meant, when there are several")
        add_admin(sub)


def run(args: argparse.Namespace) -> int:
    from controlplane.client import Client, the_service
    from controlplane.command import CommandError, print_json

    client = Client(args.admin)
    if args.action == "list":
        return _list(client, args)
    if args.action == "weight" and not 0 <= args.weight <= 256:
        raise CommandError(f"expected a weight from 0 to 256, not {args.weight}", status=2)
    service = the_service(client, args.service)
    change: dict[str, Any] = {"weight": args.weight} if args.action == "weight" else {"state": args.action}
    changed = []
    for name in args.names:
        changed.append(client.patch("services", service, "servers", name, body=change))
        if not args.json:
            print(f"{service}/{name}: " + " ".join(f"{key} {value}" for key, value in change.items()))
    if args.json:
        print_json({"service": service, "servers": changed})
    return 0


def _list(client: Client, args: argparse.Namespace) -> int:
    from controlplane.command import CommandError, print_json
    from controlplane.commands.status import SERVER_COLUMNS, server_rows
    from controlplane.table import print_table

    services = client.status()["services"]
    if args.service is not None:
        if args.service not in services:
            raise CommandError(f"no service is called '{args.service}': there are {', '.join(services) or 'none'}")
        services = {args.service: services[args.service]}
    if args.json:
        print_json({name: service.get("servers", []) for name, service in services.items()})
        return 0
    for i, (name, service) in enumerate(services.items()):
        if i:
            print()
        print_table(SERVER_COLUMNS, server_rows(service), title=name)
    return 0
