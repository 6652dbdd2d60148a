"""`vickrey check`: is this configuration file right, and what does it come to?"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlplane.config import Config

DESCRIPTION = """\
Check a configuration file: every problem is named as `file:line:column: key: what`, on standard error.
A right one is printed on standard output as it is in effect, with all defaults filled in."""

EXAMPLES = """
  vickrey check web.yaml
  vickrey check --strict --quiet web.yaml && systemctl reload vickrey
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_json

    parser.add_argument("config", metavar="CONFIG", help="configuration file")
    parser.add_argument("--strict", action="store_true", help="every timeout must be spelled out")
    parser.add_argument("-q", "--quiet", action="store_true", help="print problems only")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from controlplane.command import print_json

    config = load_or_fail(args.config, strict=args.strict)
    if args.json:
        print_json({"file": args.config, "ok": True, "config": config.as_tree()})
    elif not args.quiet:
        servers = sum(len(service.servers) for service in config.service.values())
        print(f"# {args.config}: ok ({_count(len(config.service), 'service')}, {_count(servers, 'server')})")
        print(as_yaml(config.as_tree()), end="")
    return 0


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def load_or_fail(path: str | os.PathLike[str], *, strict: bool = False) -> Config:
    """Return the configuration of a file; its problems become a CommandError."""
    from controlplane.command import CommandError
    from controlplane.config import ConfigError, load

    try:
        return load(path, strict=strict)
    except ConfigError as error:
        details = {"file": os.fspath(path), "ok": False, "problems": error.as_json()}
        raise CommandError(str(error), details=details) from None


def as_yaml(tree: dict[str, Any]) -> str:
    """Return a tree as YAML 1.2."""
    import io

    from ruamel.yaml import YAML

    yaml = YAML(pure=True)
    yaml.default_flow_style = False
    yaml.width = 1000
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(tree, out)
    return out.getvalue()
