"""`vickrey policy`: which policies there are, which is in force, and changing it under traffic."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DESCRIPTION = """\
List policies, show the one in force, set another under traffic, or go back to the one before.
A policy in shadow decides on the live observations and only logs what it would do.
A learned policy is a file; `show FILE` and `check FILE` tell of it and need no balancer."""

EXAMPLES = """
  vickrey policy list
  vickrey policy set leastconn                 HAProxy's names are understood
  vickrey policy set gsed c=0.3                with an option
  vickrey policy set peak_ewma --shadow        decide beside the one in force, do not act
  vickrey policy set --enforcing 10            now a tenth of the traffic; the rest has the one before
  vickrey policy set p2c --switchback 10       measured against the one in force, in blocks of 10 s; the winner stays
  vickrey policy set gsed --adapt              fine-tuned while it is in force
  vickrey policy set mine.yaml                 a file: {name: gsed, c: 0.3}
  vickrey policy set mine.safetensors          a learned policy: checked here, and again by the controller
  vickrey policy show mine.safetensors         what it is, on what it was trained, how it was evaluated
  vickrey policy show mine.safetensors --card  the same as Markdown
  vickrey policy check mine.safetensors        is it whole, and how long does a decision take?
  vickrey policy rollback
  vickrey policy audit                         who changed what, and what the controller did
"""


SET_WHAT = "a policy's name, a policy file (.safetensors, shipped:NAME), or a YAML file like a `policy:` mapping"

SHOW = """\
Show the policy in force and what it has learned, or what a policy file says of itself."""

CHECK = """\
Check a policy file whole, as the controller will, and let it decide for 256 servers; needs no balancer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_admin, add_json
    from controlplane.deployment.command import add_audit, add_options

    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="all policies", description="List all policies; needs no balancer.")
    add_json(listing)
    show = actions.add_parser("show", help="the policy in force, or a policy file", description=SHOW)
    show.add_argument(
        "file", metavar="FILE", nargs="?", help="a policy file, or shipped:NAME; default: what is in force"
    )
    show.add_argument("--card", action="store_true", help="of a file: its model card, Markdown")
    check = actions.add_parser("check", help="check a policy file", description=CHECK)
    check.add_argument("file", metavar="FILE", help="a policy file, or shipped:NAME")
    add_json(check)
    rollback = actions.add_parser("rollback", help="back to the policy before", description="Go back one policy.")
    change = actions.add_parser("set", help="change the policy", description="Change the policy under traffic.")
    change.add_argument("policy", metavar="NAME|FILE", nargs="?", help=SET_WHAT)
    change.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="options of the policy")
    add_options(change)
    audit = add_audit(actions)
    for sub in (show, rollback, change, audit):
        sub.add_argument("--service", help="service that is meant, when there are several")
        add_admin(sub)


def run(args: argparse.Namespace) -> int:
    if args.action == "list":
        return _list(args)
    if args.action == "check":
        return _check(args)
    if args.action == "show" and (args.file is not None or args.card):
        return _show_file(args)
    if args.action == "audit":
        return _audit(args)

    from controlplane.client import Client, the_service
    from controlplane.command import print_json

    spec = _spec(args) if args.action == "set" else {}
    client = Client(args.admin, timeout=15.0)
    service = the_service(client, args.service)
    if args.action == "show":
        answer = client.get("services", service, "policy")
    elif args.action == "rollback":
        answer = client.post("services", service, "policy", "rollback")
    else:
        answer = client.post("services", service, "policy", body=spec)
    if args.json:
        print_json(answer)
    else:
        print(describe(service, answer))
    return 0


def _audit(args: argparse.Namespace) -> int:
    from controlplane.deployment.command import print_audit

    return print_audit(args)


def _list(args: argparse.Namespace) -> int:
    from controlplane import registry
    from controlplane.command import print_json
    from controlplane.table import print_table

    listed: list[dict[str, Any]] = [
        {"name": name, "description": text, "aliases": []} for name, text in registry.names().items()
    ]
    for entry in listed:
        entry["aliases"] = [alias for alias, name in registry.ALIASES.items() if name == entry["name"]]
    for name, path in registry.shipped().items():
        listed.append({"name": registry.PREFIX + name, "description": _describe(path), "aliases": [name]})
    if args.json:
        print_json(listed)
        return 0
    rows = [[entry["name"], ", ".join(entry["aliases"]), entry["description"]] for entry in listed]
    print_table(["POLICY", "ALSO CALLED", "WHAT IT DOES"], rows)
    return 0


def _describe(path: Path) -> str:
    """Return the line of a policy that comes with the package."""
    from controlplane.learned.policy_file import PolicyFileError, read

    try:
        manifest = read(path)[1]
    except PolicyFileError as error:  # a damaged installation must not hide the others
        return str(error)
    return manifest.description.partition("\n")[0] or f"{manifest.agent} on {manifest.base_name}"


# --- policy files -----------------------------------------------------------------------------------------------------


def _show_file(args: argparse.Namespace) -> int:
    from controlplane.command import CommandError, print_json
    from controlplane.learned import card
    from controlplane.learned.model import find
    from controlplane.learned.policy_file import PolicyFileError, read
    from controlplane.table import print_table

    if args.file is None:
        raise CommandError("--card: of which file?", status=2)
    try:
        path = find(args.file)
        parameters, manifest = read(path)
    except PolicyFileError as error:
        raise CommandError(str(error)) from None
    if args.json:
        weights = sum(values.size for values in parameters.values())
        print_json({"file": str(path), "weights": weights, "manifest": manifest.as_json()})
    elif args.card:
        print(card.card(path, parameters, manifest), end="")
    else:
        print_table(["", ""], card.about(path, parameters, manifest))
        print()
        print_table(card.RANGE_COLUMNS, card.range_rows(manifest), "INPUTS IN TRAINING")
        print()
        plain, tables = card.evaluation(manifest.evaluation or {"it was not evaluated": ""})
        print_table(["", ""], plain, "EVALUATION")
        for title, columns, rows in tables:
            print()
            print_table(columns, rows, title.upper())
    return 0


def _check(args: argparse.Namespace) -> int:
    from controlplane.command import CommandError, print_json
    from controlplane.learned.model import check
    from controlplane.learned.policy_file import PolicyFileError

    try:
        found = check(args.file)
    except PolicyFileError as error:
        raise CommandError(str(error), details={"file": args.file, "ok": False}) from None
    if args.json:
        print_json({"ok": True, **found})
    else:
        print(
            f"{found['file']}: ok: {found['agent']} on {found['base']}, {found['weights']:,} weights, "
            f"{found['network_ms']:.2f} ms a decision for {found['servers']} servers"
        )
    return 0


# --- setting ----------------------------------------------------------------------------------------------------------


def _spec(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the admin API is sent for `policy set`."""
    from controlplane import registry
    from controlplane.command import CommandError
    from controlplane.deployment.command import apply_options

    if args.policy is None:
        change: dict[str, Any] = {}
        apply_options(args, change)
        if not change:
            raise CommandError("which policy? Without one, --enforcing and the like change the one in force", status=2)
        return change
    spec, folder = registry.spec_of(args.policy), ""
    if spec["name"] == args.policy and ("/" in args.policy or args.policy.endswith((".yaml", ".yml", ".json"))):
        spec, folder = _from_file(args.policy), os.path.dirname(args.policy)
    for option in args.options:
        key, equals, text = option.partition("=")
        if not key or not equals or not text:
            raise CommandError(f"expected OPTION=VALUE, not '{option}'", status=2)
        spec[key] = _value(option, text)
    apply_options(args, spec)
    if spec["name"] == "learned":
        _check_learned(spec, folder)
    return spec


def _check_learned(spec: dict[str, Any], folder: str) -> None:
    """Refuse a policy file that is not right; the controller, which runs elsewhere, is told its absolute path."""
    from controlplane import registry
    from controlplane.command import CommandError
    from controlplane.learned.model import Model
    from controlplane.learned.policy_file import PolicyFileError

    file = spec.get("file")
    if not isinstance(file, str) or not file:
        raise CommandError("policy learned: which file? (`vickrey policy set FILE.safetensors`)", status=2)
    spec.update(registry.absolute(spec, folder))
    try:
        Model(spec["file"])
    except PolicyFileError as error:
        raise CommandError(str(error)) from None


def _from_file(path: str) -> dict[str, Any]:
    from controlplane.command import CommandError
    from controlplane.config_errors import ConfigError
    from controlplane.config_yaml import read_yaml

    try:
        document = read_yaml(path, "'name:'")
        if document.problems:
            raise ConfigError(document.problems)
    except ConfigError as error:
        raise CommandError(str(error), details={"problems": error.as_json()}) from None
    if not isinstance(document.root, dict) or not isinstance(document.root.get("name"), str):
        raise CommandError(f"{path}: expected a mapping like {{name: gsed, c: 0.3}}")
    return document.root


def _value(option: str, text: str) -> Any:
    """Return an option's value, read as YAML would."""
    from controlplane.command import CommandError
    from controlplane.config_errors import ConfigError
    from controlplane.config_yaml import parse_yaml

    try:
        document = parse_yaml(text, option)
    except ConfigError as error:
        raise CommandError(str(error), status=2) from None
    if document.problems:
        raise CommandError(str(document.problems[0]), status=2)
    return document.root


def describe(service: str, answer: dict[str, Any]) -> str:
    """Return a policy's state in words: keys and values, then what it knows of each server as a table."""
    from controlplane.table import plain_table

    rows, tables = [], []
    for key, value in _flat(answer):
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            tables.append(_table(value))
        else:
            rows.append([key, _short(value)])
    lines = plain_table(["", ""], rows).splitlines()[1:] if rows else []
    return "\n".join([service, *(f"  {line}" for line in lines)] + [f"\n{table}" for table in tables])


def _flat(answer: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in answer.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", v) for inner, v in value.items())
        else:
            yield key, value


def _table(entries: list[dict[str, Any]]) -> str:
    """Return entries of (nearly) the same keys as a table, a row each; bids as far as they fit."""
    from controlplane.table import plain_table

    names = list(dict.fromkeys(key for entry in entries for key in entry))
    rows = [[_cell(entry.get(name)) for name in names] for entry in entries]
    return plain_table([name.upper().replace("_", " ") for name in names], rows)


def _cell(value: Any) -> str:
    from controlplane.table import NOTHING

    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(_cell(inner) for inner in value[:4]) + (" …" if len(value) > 4 else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(value: Any) -> str:
    import json

    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
