"""`vickrey run`: start a balancer and stay with it until a signal ends it."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

DESCRIPTION = """\
Run a balancer in the foreground, from a configuration file or from arguments.

Signals: TERM ends gracefully, a second one at once; HUP reloads; USR1 reopens logs; INT ends at once, cleanly."""

EXAMPLES = """
  vickrey run web.yaml
  vickrey run --listen :8080 --server 10.0.0.1:80 --server 10.0.0.2:80
  vickrey run --listen 127.0.0.1:5432 --server db1:5432 --server db2:5432 --mode tcp --policy lsq
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import ADMIN_DEFAULT, add_json

    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG", help="configuration file")
    direct = parser.add_argument_group("without a file")
    direct.add_argument(
        "--listen", action="append", default=[], metavar="ADDRESS", help="HOST:PORT, :PORT or unix:PATH"
    )
    direct.add_argument("--server", action="append", default=[], metavar="ADDRESS", help="HOST:PORT or unix:PATH")
    direct.add_argument("--mode", choices=["http", "tcp"], help="default http")
    direct.add_argument("--policy", metavar="NAME", help="default adaptive; `vickrey policy list` shows all")
    direct.add_argument("--workers", type=int, metavar="N", help="threads; 0: one per core (default 1)")
    direct.add_argument("--admin", metavar="ADDRESS", help=f"HOST:PORT, unix:PATH or off (default {ADMIN_DEFAULT})")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from controlplane.command import ADMIN_DEFAULT, CommandError, print_json

    options = ("listen", "server", "mode", "policy", "workers", "admin")
    direct = [name for name in options if getattr(args, name) not in (None, [])]
    if args.config is not None and direct:
        raise CommandError(f"give a CONFIG file or --{direct[0]}, not both", status=2)
    if args.config is None and not (args.listen and args.server):
        raise CommandError("give a CONFIG file, or at least one --listen and one --server", status=2)

    from controlplane.config import Config, ConfigError, from_arguments, load

    try:
        config: Config
        if args.config is not None:
            config = load(args.config)
        else:
            config = from_arguments(
                listen=args.listen,
                servers=args.server,
                admin=args.admin or ADMIN_DEFAULT,
                mode=args.mode,
                policy=args.policy,
                workers=args.workers,
            )
    except ConfigError as error:
        usage = args.config is None
        raise CommandError(str(error), status=2 if usage else 1, details={"problems": error.as_json()}) from None

    from controlplane.supervisor import run as supervise

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if args.verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
    )
    status = supervise(config, args.config, logging.getLogger("vickrey"))
    if args.json:
        print_json({"instance": config.instance, "exit": status})
    return status
