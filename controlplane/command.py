"""What all commands share: how they fail, and the options that each of them takes."""

from __future__ import annotations

import argparse
from typing import Any

ADMIN_DEFAULT = "127.0.0.1:9900"


class CommandError(Exception):
    """A command that failed, in words for its user. details: more of it for --json."""

    def __init__(self, message: str, *, status: int = 1, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.details = details or {}


class Parser(argparse.ArgumentParser):
    """argparse, with descriptions as they were written and no abbreviated options: what works today works tomorrow."""

    def __init__(self, **keywords: Any) -> None:
        keywords.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **keywords)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def add_admin(parser: argparse.ArgumentParser) -> None:
    """Add what every command needs that talks to a running balancer."""
    what = f"admin API of the balancer: HOST:PORT or unix:PATH (default {ADMIN_DEFAULT})"
    parser.add_argument("--admin", default=ADMIN_DEFAULT, metavar="ADDRESS", help=what)
    add_json(parser)


def print_json(document: Any) -> None:
    import json

    print(json.dumps(document, indent=2, ensure_ascii=False))
