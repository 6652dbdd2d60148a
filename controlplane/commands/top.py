"""`vickrey top`: the state of a running balancer, live."""

from __future__ import annotations

import argparse
import contextlib
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

DESCRIPTION = "Show a running balancer live. q or Ctrl-C ends it. Where there is no terminal, it prints once."

EXAMPLES = """
  vickrey top
  vickrey top --interval 0.2
  vickrey top --once
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_admin

    parser.add_argument("--interval", type=_interval, default=1.0, metavar="SECONDS", help="0.1 … 60 (default 1)")
    parser.add_argument("--once", action="store_true", help="print once and end")
    parser.add_argument("--service", help="this service only")
    add_admin(parser)


def _interval(text: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"expected seconds from 0.1 to 60, not '{text}'")
    return seconds


def run(args: argparse.Namespace) -> int:
    from controlplane.client import Client
    from controlplane.command import CommandError
    from controlplane.commands import status

    if args.once or args.json or not sys.stdout.isatty():
        return status.run(args)

    from rich.live import Live
    from rich.text import Text

    client = Client(args.admin)
    shown = _view(client.status(), args.service)
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys() as pressed,
        Live(shown, screen=True, auto_refresh=False) as live,
    ):
        while True:
            live.refresh()
            if pressed(args.interval) == "q":
                break
            try:
                live.update(_view(client.status(), args.service))
            except CommandError as error:
                live.update(Text(str(error), style="red"))
    return 0


def _view(state: dict[str, Any], only: str | None) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from controlplane.commands.status import headline, server_table, service_title
    from controlplane.table import rich_table

    parts: list[RenderableType] = [Text(headline(state), style="bold")]
    for name, service in state["services"].items():
        if only is None or name == only:
            parts += [Text(), rich_table(*server_table(service), service_title(name, service))]
    return Group(*parts, Text("\nq ends", style="dim"))


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Give a function that waits some seconds for a key; it leaves the terminal as it was."""
    if not sys.stdin.isatty():
        yield _no_keys
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield lambda seconds: sys.stdin.read(1) if select.select([sys.stdin], [], [], seconds)[0] else ""
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _no_keys(seconds: float) -> str:
    time.sleep(seconds)
    return ""
