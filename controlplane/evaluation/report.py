"""An evaluation's document as files: report.html (one page, plots in it), result.json, runs.csv (a row a run)."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from controlplane.command import CommandError
from controlplane.evaluation import tables
from controlplane.simulation import svg

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin-bottom: 1.5rem; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 0.25rem 0.55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; overflow-x: auto; }
.wide { overflow-x: auto; }
.better { background: #009e7333; } .worse { background: #d55e0044; } .undecided { background: #e69f0033; }
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

    def write(self, found: Mapping[str, Any]) -> None:
        try:
            self.page.write_text(html(found), encoding="utf-8")
            (self.folder / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            write_csv(self.folder / "runs.csv", found["runs"])
        except OSError as error:
            raise CommandError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from None


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def html(found: Mapping[str, Any]) -> str:
    """Return the report as one page that needs nothing else."""
    title, line = tables.heading(found).split("\n")
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(line)}. Seeds {_seeds(found['seeds'])}; suite {found['digest']}.</p>",
    ]
    for gate in found["gate"]:
        parts += _candidate(found, gate)
    recovery = tables.recovery_table(found)
    if recovery:
        parts += ["<h2>Recovery</h2>", "<p>Mean of the first 200 service times after the capacity swap, ms.</p>"]
        parts.append(table(*recovery))
    parts += [f"<figure>{plot}</figure>" for plot in courses(found)]
    parts += ["<h2>Every policy</h2>", "<p>Mean completion time over the least of any policy's, by scenario.</p>"]
    parts.append(matrix(found))
    parts += ["<h2>References</h2>", "<p>Means, ms. What no proxy can reach; they know nothing of events.</p>"]
    parts.append(table(*tables.reference_table(found)))
    if found["tuning"]["families"]:
        seeds = _seeds(found["tuning"]["seeds"])
        parts += ["<h2>Tuned options</h2>", f"<p>By family, on seeds {seeds}, which are not the evaluation's.</p>"]
        parts.append(table(*tables.tuning_table(found)))
    return page(title, parts)


def page(title: str, parts: Sequence[str]) -> str:
    """Return a page of these parts."""
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _seeds(seeds: Sequence[int]) -> str:
    run = list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 and list(seeds) == run else ", ".join(map(str, seeds))


def _candidate(found: Mapping[str, Any], gate: Mapping[str, Any]) -> list[str]:
    policy = gate["policy"]
    first, *reasons = tables.verdict_lines(gate)
    return [
        f"<h2>{escape(policy)}</h2>",
        f"<p><strong>{escape(first)}</strong></p>",
        "<ul>" + "".join(f"<li>{escape(reason.strip())}</li>" for reason in reasons) + "</ul>" if reasons else "",
        f"<figure>{ratios(found, policy)}</figure>",
        table(*tables.candidate_table(found, policy)),
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name.lstrip('>').capitalize())}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{_class(cell)}>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _class(cell: str) -> str:
    return f' class="{cell}"' if cell in ("better", "worse", "undecided") else ""


def ratios(found: Mapping[str, Any], policy: str) -> str:
    """Return the plot of a candidate's mean against the best heuristic's, a row a scenario."""
    rows: list[tuple[str, float | None, float | None]] = []
    for scenario in found["scenarios"]:
        row = tables.row_of(scenario, policy)
        versus = row["against"].get(row["best"]["mean"], {}).get("mean", {})
        value, low, high = (versus.get(name) for name in ("value", "low", "high"))
        rows.append(
            (
                scenario["scenario"],
                None if value is None else 100 * (value - 1),
                None if low is None or high is None else 50 * (high - low),
            )
        )
    axis = svg.Axis("mean completion time against the best heuristic's, % (left is better)")
    return svg.estimates(f"{policy}: paired differences with 95 % intervals", rows, axis, (0.0, "best heuristic"))


def courses(found: Mapping[str, Any]) -> list[str]:
    """Return plots over time of the scenarios in which something changes, candidates and strong heuristics."""
    drawn = []
    for scenario in found["scenarios"]:
        if not scenario["phases"]:
            continue
        best = scenario["best"]["mean"]
        rows = [
            row for row in scenario["policies"] if row["role"] == "candidate" or row["policy"] in ("adaptive", best)
        ]
        series = []
        for row in rows:
            course = row.get("course", [])
            x = [100.0 * (i + 0.5) / max(len(course), 1) for i in range(len(course))]
            series.append(svg.Series(row["policy"], x, [None if v is None else 1e3 * v for v in course]))
        values = [v for one in series for v in one.y if v is not None and v > 0]
        wide = bool(values) and max(values) > 10 * min(values)
        y = svg.Axis("mean, ms", log=wide, low=None if wide else 0.0)
        title = f"{scenario['scenario']}: mean completion time over the run"
        drawn.append(svg.lines(title, series, svg.Axis("share of the run, %", low=0.0, high=100.0), y))
    return drawn


def matrix(found: Mapping[str, Any]) -> str:
    """Return all policies × scenarios: the mean over the least, coloured by how far it is off."""
    names = [row["policy"] for row in found["scenarios"][0]["policies"]] if found["scenarios"] else []
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = []
    for scenario in found["scenarios"]:
        means = [tables.row_of(scenario, name).get("mean", {}).get("mean") for name in names]
        least = min((mean for mean in means if mean), default=math.nan)
        cells = "".join(_shaded(None if not mean else mean / least) for mean in means)
        body.append(f"<tr><td>{escape(scenario['scenario'])}</td>{cells}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>'
        + "\n".join(body)
        + "</tbody></table></div>"
    )


def _shaded(ratio: float | None) -> str:
    if ratio is None:
        return "<td>-</td>"
    off = min(math.log(ratio) / math.log(3), 1.0)  # three times the least, and beyond, is the darkest
    colour = f"background: rgba(213, 94, 0, {0.6 * off:.2f})" if off > 0.003 else "background: rgba(0, 158, 115, 0.3)"
    return f'<td style="{colour}">{f"{ratio:.2f}" if ratio < 100 else "&gt; 100"}</td>'
