"""What `vickrey policy` has for deployment: the options of `set`, and the audit log as a table."""

from __future__ import annotations

import argparse
from typing import Any

AUDIT = """\
Show the newest records of the audit log: who changed what, what the controller did, and how it went."""

# Keys of a record that the table has columns for, or that say it at length.
_COLUMNS = ("time", "who", "service", "what", "policy")
_LONG = ("spec", "sha256", "body")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a policy comes into force."""
    parser.add_argument("--shadow", action="store_true", help="decide beside the policy in force, do not act")
    parser.add_argument(
        "--enforcing",
        type=int,
        metavar="PERCENT",
        help="share of the traffic that follows it, 0 … 100",
    )
    parser.add_argument(
        "--switchback", type=float, metavar="SECONDS", help="measure it against the one in force, in blocks of so long"
    )
    parser.add_argument("--pairs", type=int, metavar="N", help="of blocks in a switchback, at most (default 24)")
    parser.add_argument(
        "--incumbent", metavar="NAME|FILE", help="who decides the rest (default: the one in force; or 'fallback')"
    )
    parser.add_argument(
        "--adapt", action=argparse.BooleanOptionalAction, default=None, help="fine-tune it while it is in force"
    )
    parser.add_argument(
        "--guard", action=argparse.BooleanOptionalAction, default=None, help="roll back on a regression (default)"
    )
    parser.add_argument("--force", action="store_true", help="although it was rolled back a moment ago")


def apply_options(args: argparse.Namespace, spec: dict[str, Any]) -> None:
    """Write the options into a specification; CommandError: they make no sense."""
    from controlplane import registry
    from controlplane.command import CommandError
    from controlplane.deployment import options

    if args.enforcing is not None:
        if not 0 <= args.enforcing <= 100:
            raise CommandError(f"expected --enforcing from 0 to 100, not {args.enforcing}", status=2)
        spec["enforcing"] = args.enforcing
    if args.shadow:
        spec["mode"] = "shadow"
    if args.switchback is not None:
        pairs = {} if args.pairs is None else {"pairs": args.pairs}
        spec["switchback"] = {"seconds": args.switchback, **pairs} if pairs else args.switchback
    elif args.pairs is not None:
        raise CommandError("--pairs: of which blocks? (--switchback SECONDS)", status=2)
    if args.incumbent is not None:
        named = registry.spec_of(args.incumbent)
        spec["incumbent"] = args.incumbent if named == {"name": args.incumbent} else registry.absolute(named, "")
    for key in ("adapt", "guard"):
        if getattr(args, key) is not None:
            spec[key] = getattr(args, key)
    if args.force:
        spec["force"] = True
    try:
        options.check(spec)
    except ValueError as error:
        raise CommandError(str(error), status=2) from None


def add_audit(actions: Any) -> argparse.ArgumentParser:
    """Add the action `audit`; returns its parser."""
    parser: argparse.ArgumentParser = actions.add_parser("audit", help="what was changed, by whom", description=AUDIT)
    parser.add_argument("--last", type=int, default=20, metavar="N", help="so many records (default 20, at most 500)")
    return parser


def print_audit(args: argparse.Namespace) -> int:
    """Print the newest records."""
    from controlplane.client import Client
    from controlplane.command import CommandError, print_json
    from controlplane.table import print_table

    if not 0 < args.last <= 500:
        raise CommandError(f"expected --last from 1 to 500, not {args.last}", status=2)
    answer = Client(args.admin).get("audit", last=args.last)
    records = [r for r in answer["records"] if args.service is None or r.get("service") in (args.service, None)]
    if args.json:
        print_json({**answer, "records": records})
        return 0
    rows = [[str(r.get(key) or "-") for key in _COLUMNS] + [_rest(r)] for r in records]
    print_table([*(key.upper() for key in _COLUMNS), "HOW"], rows)
    return 0


def _rest(record: dict[str, Any]) -> str:
    """Return what a record says beyond its columns, in one line."""
    if record.get("what") == "request":
        return f"{record.get('method')} {record.get('path')}: {record.get('status')} {record.get('body', '')}"[:100]
    rest = {key: value for key, value in record.items() if key not in (*_COLUMNS, *_LONG) and value not in (None, "")}
    if "why" in rest:
        rest = {"": rest.pop("why"), **rest}
    text = ", ".join(f"{key} {_text(value)}".strip() for key, value in rest.items())
    return text if len(text) <= 160 else text[:157] + "..."


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + " ".join(f"{key}={_text(inner)}" for key, inner in value.items() if inner is not None) + ")"
    return str(value)
