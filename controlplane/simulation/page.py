"""Writes an outcome to a folder: report.html (one file, plots in it), result.json and runs.csv (a row a run)."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from controlplane.command import CommandError
from controlplane.simulation import outcome, svg

_MS = 1e3

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin-bottom: 1.5rem; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 0.25rem 0.55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; overflow-x: auto; }
.wide { overflow-x: auto; }
"""


class Writer:
    """The files of one report. Makes the folder at once, so that a bad one is found before the work."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.page = self.folder / "report.html"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"{folder}: {(error.strerror or str(error)).lower()}") from None

    def write(self, found: dict[str, Any]) -> None:
        try:
            self.page.write_text(html(found), encoding="utf-8")
            (self.folder / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            with open(self.folder / "runs.csv", "w", encoding="utf-8", newline="") as stream:
                rows = found["runs"]
                names = dict.fromkeys(name for row in rows for name in row)
                writer = csv.DictWriter(stream, names, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        except OSError as error:
            raise CommandError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from None


def html(found: dict[str, Any]) -> str:
    """Return the report as one page that needs nothing else."""
    title = found["title"] or found["scenario"]
    _, line = outcome.heading(found).split("\n")
    phases = outcome.phase_table(found)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{_prose(found['description'])}</p>",
        f"<p>{escape(line)}. Differences and gaps are of the mean, paired by seed.</p>",
        _table(*outcome.table(found)),
        *([_table(*phases)] if phases else []),
        *(f"<figure>{plot}</figure>" for plot in plots(found)),
        f"<h2>Servers</h2>{_servers(found['servers'])}",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _prose(text: str) -> str:
    """Return text as HTML, names in `backticks` as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name.lstrip('>').capitalize())}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _servers(servers: Sequence[dict[str, Any]]) -> str:
    groups: list[list[Any]] = []  # neighbours that are alike
    for i, server in enumerate(servers):
        if groups and groups[-1][2] == server:
            groups[-1][1] = i
        else:
            groups.append([i, i, server])
    rows = [
        [
            f"{first} – {last}" if last > first else str(first),
            f"{server['speed']:g}",
            str(server["workers"]),
            "processor sharing" if server["service"] == "sharing" else "first come, first served",
            str(server["weight"]),
            "yes" if server["present"] else "joins later",
        ]
        for first, last, server in groups
    ]
    return _table(["slots", ">speed", ">workers", ">service", ">weight", ">there at the start"], rows)


def plots(found: dict[str, Any]) -> list[str]:
    """Return the plots of a report, each an SVG."""
    drawn = [means(found), tails(found), courses(found)]
    if len(found["servers"]) > 1:
        slots = [float(i) for i in range(len(found["servers"]))]
        series = [svg.Series(row["policy"], slots, row["utilisation"], dots=True) for row in found["policies"]]
        drawn.append(
            svg.lines(
                "Utilisation of each server",
                series,
                svg.Axis("slot", whole=True),
                svg.Axis("share of time busy", low=0.0, high=1.0),
            )
        )
    return drawn


def means(found: dict[str, Any]) -> str:
    """Return the plot of the mean of each policy, and the reference's as a line."""
    reference = found["reference"]
    rows = [(row["policy"], _ms(row["mean"]["mean"]), _ms(row["mean"].get("half"))) for row in found["policies"]]
    there = [value for _, value, _ in rows if value is not None]
    mark = None
    if reference is not None and reference["mean"]["mean"] is not None:
        mark = (reference["mean"]["mean"] * _MS, reference["policy"])
        there.append(mark[0])
    wide = bool(there) and max(there) > 10 * min(there) > 0
    axis = svg.Axis("mean completion time, ms", log=wide, low=0.7 * min(there) if wide else 0.0)
    return svg.estimates("Mean completion time, with 95 % intervals", rows, axis, mark)


def tails(found: dict[str, Any]) -> str:
    """Return the plot of the share of flows that take longer than a time."""
    rows = [(row, False) for row in found["policies"]]
    if found["reference"] is not None and "tail" in found["reference"]:
        rows.append((found["reference"], True))
    series = [
        svg.Series(
            row["policy"],
            [time * _MS if time is not None else math.nan for time in row["tail"]],
            [
                share if time is not None else None
                for share, time in zip(found["tail_shares"], row["tail"], strict=True)
            ],
            dashed,
        )
        for row, dashed in rows
    ]
    # The shortest flows would stretch the axis over decades in which nothing is to be seen.
    medians = [t * _MS for row, _ in rows for t in row["tail"][3:4] if t]
    x = svg.Axis("completion time, ms", log=True, low=min(medians, default=None))
    return svg.lines("Share of flows that take longer", _from(series, x.low), x, svg.Axis("share", log=True, high=1.0))


def _from(series: Sequence[svg.Series], low: float | None) -> list[svg.Series]:
    """Return the series less what lies left of `low`."""
    kept = []
    for one in series:
        y = [v if low is None or u >= low else None for u, v in zip(one.x, one.y, strict=True)]
        kept.append(svg.Series(one.name, one.x, y, one.dashed, one.dots))
    return kept


def courses(found: dict[str, Any]) -> str:
    """Return the plot of mean completion times over time, events marked."""
    rows = [(row, False) for row in found["policies"]]
    if found["reference"] is not None and "course" in found["reference"]:
        rows.append((found["reference"], True))
    series = [
        svg.Series(row["policy"], found["course_times"], [_ms(value) for value in row["course"]], dashed)
        for row, dashed in rows
    ]
    values = [v for one in series for v in one.y if v is not None and v > 0]
    wide = bool(values) and max(values) > 10 * min(values)
    marks: dict[float, list[str]] = {}
    for event in found["events"]:
        words = marks.setdefault(event["at"], [])
        words += [event["kind"]] if event["kind"] not in words else []
    return svg.lines(
        "Mean completion time over the run, by time of arrival",
        series,
        svg.Axis("time, s", low=0.0, high=found["length"]),
        svg.Axis("mean, ms", log=wide, low=None if wide else 0.0),
        [(at, ", ".join(words)) for at, words in marks.items()],
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * _MS
