"""A reproduction's document as files: report.html, result.json, and runs.csv (a row a method and case)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from controlplane.command import CommandError
from controlplane.evaluation import report, reproduce
from controlplane.evaluation.testbeds import FIGURES, KINDS
from controlplane.simulation import svg


class Writer(report.Writer):
    """As an evaluation's."""

    def write(self, found: Mapping[str, Any]) -> None:
        try:
            self.page.write_text(html(found), encoding="utf-8")
            (self.folder / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            report.write_csv(self.folder / "runs.csv", rows(found))
        except OSError as error:
            raise CommandError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from None


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row a case and method: means over the seeds, seconds."""
    flat = []
    for case in found["cases"]:
        for row in case["methods"]:
            line: dict[str, Any] = {"case": case["case"], "rate": case["rate"], "method": row["method"]}
            line["missing"] = row.get("missing", "")
            for kind in KINDS:
                for figure in FIGURES if kind in row else ():
                    line[f"{kind}_{figure}"] = row[kind][figure]["mean"]
                line[f"{kind}_published_ms"] = row["published"].get(kind)
            line["rejected"] = row.get("rejected")
            flat.append(line)
    return flat


def html(found: Mapping[str, Any]) -> str:
    """Return the report as one page that needs nothing else."""
    title, line = reproduce.heading(found).split("\n")
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(line)}</p>"]
    for case in found["cases"]:
        parts += [f"<h2>{escape(reproduce.case_heading(case))}</h2>", report.table(*reproduce.case_table(case))]
        parts.append(f"<figure>{plot(case)}</figure>")
    lines = reproduce.agreement(found)
    if lines:
        parts += ["<h2>Agreement</h2>", "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in lines) + "</ul>"]
    return report.page(title, parts)


def plot(case: Mapping[str, Any]) -> str:
    """Return the plot of each method's mean over SED's, over all queries."""
    drawn: list[tuple[str, float | None, float | None]] = []
    for row in case["methods"]:
        ratio = row["all"]["against_sed"] if "all" in row else {}
        value, low, high = (ratio.get(name) for name in ("value", "low", "high"))
        drawn.append((row["title"], value, None if low is None or high is None else (high - low) / 2))
    known = [value for _, value, _ in drawn if value is not None]
    wide = bool(known) and max(known) > 10 * min(known)
    axis = svg.Axis("mean completion time over SED's", log=wide, low=0.8 * min(known) if wide else 0.0)
    return svg.estimates(f"{case['case']}: mean over all queries", drawn, axis, (1.0, "SED"))
