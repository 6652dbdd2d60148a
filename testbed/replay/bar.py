"""`python -m testbed.replay.bar`: draws the progress of a replay on standard error, from snapshots on standard input.

One JSON document a line (live.Live._snapshot), until the end of input; then the bar is gone.
"""

from __future__ import annotations

import json
import sys

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from testbed.replay.live import lines


def main() -> int:
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("replay"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}"),
        console=console, auto_refresh=False,
    )  # fmt: skip
    task = progress.add_task("", total=1.0)
    print(flush=True)  # ready
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for line in sys.stdin:
            snapshot = json.loads(line)
            now_s, total_s = snapshot["now_s"], max(snapshot["total_s"], 1e-9)
            what = f"{now_s:.1f} of {total_s:.1f} s"
            if snapshot["waits"]:
                what = f"waits for {snapshot['in_flight']:,} answers"
            progress.update(task, completed=min(now_s / total_s, 1.0), description=what)
            words = (Text("  " + text, no_wrap=True, overflow="ellipsis") for text in lines(snapshot))
            live.update(Group(progress.get_renderable(), *words), refresh=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
