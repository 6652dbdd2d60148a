"""`vickrey server`: list the servers of a running balancer, what each contributes, and change states and weights."""

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
  vickrey server contribution            what each is worth, and which to drain first
  vickrey server drain big               before work on it
  vickrey server ready big
  vickrey server weight big 20           0 … 256; 0: no new flows
  vickrey server maint a b --service web
"""

CONTRIBUTION = """\
What each server contributes: Shapley values of three games, from the rates, workers and arrivals
that policy adaptive or auction fitted. Spare: its spare capacity, flows a second. Pooled: flows in
flight saved by serving the servers' arrivals together. Serving: flows in flight saved because it
helps to serve the whole load. Values have error bars (95 %) where there are more than 20 servers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_admin

    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    what = {
        "list": "the servers, their states and what they do",
        "contribution": "what each server contributes, and which to drain first",
        "drain": "no new flows; those in flight finish",
        "ready": "take flows again",
        "maint": "as drain, and no health checks",
        "weight": "set a weight, 0 … 256",
    }
    for action, text in what.items():
        sub = actions.add_parser(
            action,
            help=text,
            description=CONTRIBUTION if action == "contribution" else text[0].upper() + text[1:] + ".",
        )
        if action == "weight":
            sub.add_argument("names", nargs=1, metavar="SERVER")
            sub.add_argument("weight", type=int, metavar="WEIGHT")
        elif action not in ("list", "contribution"):
            sub.add_argument("names", nargs="+", metavar="SERVER")
        sub.add_argument("--service", help="service that is meant, when there are several")
        add_admin(sub)


def run(args: argparse.Namespace) -> int:
    from controlplane.client import Client, the_service
    from controlplane.command import CommandError, print_json

    client = Client(args.admin)
    if args.action == "list":
        return _list(client, args)
    if args.action == "contribution":
        return _contribution(client, args)
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


def _contribution(client: Client, args: argparse.Namespace) -> int:
    from controlplane.auction.contribution import NotFittedError, contribution
    from controlplane.client import the_service
    from controlplane.command import CommandError, print_json
    from controlplane.table import number, print_table

    service = the_service(client, args.service)
    try:
        found = contribution(client.get("services", service, "policy"))
    except NotFittedError as error:
        raise CommandError(f"{service}: {error}") from None
    if args.json:
        print_json({"service": service, **found})
        return 0

    def digits(value: float) -> str:
        return number(value, 0 if value >= 1000 else 1 if value >= 10 else 3)

    def worth(of: dict[str, Any]) -> str:
        bar = f" ± {digits(of['error'])}" if of["error"] > 0 else ""
        return f"{digits(of['shapley'])}{bar} ({of['share']:.0%})"

    rows = [
        [
            server["name"],
            number(server["capacity"], 1),
            number(server["arrivals"], 1),
            *(worth(server["games"][game]) for game in ("spare", "pooled", "serving")),
            digits(server["alone_out"]),
            str(server["drain"]),
        ]
        for server in found["servers"]
    ]
    columns = ["SERVER", "CAPACITY/S", "ARRIVALS/S", "SPARE/S", "POOLED", "SERVING", "IF IT LEFT", "DRAIN"]
    load, capacity = number(found["arrivals"], 1), number(found["capacity"], 1)
    print_table(columns, rows, title=f"{service}  policy {found['policy']}  {load} of {capacity} flows/s")
    print(_drain_line(found["drain"]))
    return 0


def _drain_line(drain: list[dict[str, Any]]) -> str:
    """Return what can be drained, in words."""
    spared = [step for step in drain if step["can_be_spared"]]
    if not spared:
        return "drain: none can be spared"
    names = ", then ".join(step["name"] for step in spared)
    return f"drain: {names}; the others are then used to {spared[-1]['utilisation_after']:.0%}"
