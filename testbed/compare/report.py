"""Writes a comparison to a folder.

report.html      figures, plots over time, configurations: one file that needs nothing else
report.md        the tables
result.json      all figures          runs.csv          a row a balancer and round
telemetry.csv    a row a sample and server              configurations/   as each balancer was given it
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from pathlib import Path
from typing import Any

from controlplane.command import CommandError
from testbed import report_page, telemetry
from testbed.compare import tables
from testbed.compare.runner import Comparison


class Writer:
    """The files of one report. Makes the folder at once, so that a bad one is found before the work."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.page = self.folder / "report.html"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"{folder}: {(error.strerror or str(error)).lower()}") from None

    def remove(self) -> None:
        """Take the folder away again when nothing is in it."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def write(self, document: dict[str, Any], found: Comparison) -> None:
        try:
            self.page.write_text(html(document, found), encoding="utf-8")
            (self.folder / "report.md").write_text(text(document), encoding="utf-8")
            (self.folder / "result.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            self._write_runs(document)
            runs = [({"balancer": run.variant, "round": run.round + 1}, run.telemetry) for run in found.runs]
            telemetry.write_csv(self.folder / "telemetry.csv", runs)
            configurations = self.folder / "configurations"
            configurations.mkdir(exist_ok=True)
            for name, configuration in found.configurations.items():
                (configurations / f"{re.sub(r'[^a-z0-9_]+', '-', name.lower())}.txt").write_text(configuration)
        except OSError as error:
            raise CommandError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from None

    def _write_runs(self, document: dict[str, Any]) -> None:
        rows = []
        for one in document["balancers"]:
            for run in one["rounds"]:
                plain = {key: value for key, value in run.items() if not isinstance(value, list | dict)}
                marks = {"marks": "; ".join(run["invalid"] + run["notes"])}
                rows.append({"balancer": one["name"], **plain, "round": run["round"] + 1, **marks})
        with (self.folder / "runs.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def html(document: dict[str, Any], found: Comparison) -> str:
    """Return the report as one page."""
    from testbed.compare import plots

    columns, rows = tables.main_table(document)
    invalid = {one["name"] for one in document["balancers"] if not one["valid_rounds"]}
    classes = ["first" if row[0] == document["base"] else "bad" if row[0] in invalid else "" for row in rows]
    sections = [("", report_page.prose(document["shows"]))]
    sections += [("", report_page.note(line)) for line in document["notes"]]
    sections.append(("Figures", report_page.table(columns, rows, classes) + report_page.prose(tables.LEGEND)))
    if document["verdict"]:
        sections.append(("Verdict", report_page.table(*tables.verdict_table(document))))
    kinds = tables.kinds_table(document)
    if kinds:
        sections.append(("Kinds of requests", report_page.table(*kinds)))
    sections += [(heading, report_page.plot(figure)) for heading, figure in plots.overall(document, found)]
    use = tables.utilisation_table(document)
    if use:
        sections.append(("Utilisation of the servers", report_page.table(*use)))
    sections += [(heading, report_page.plot(figure)) for heading, figure in plots.over_time(document, found)]
    sections.append(("Rounds", report_page.table(*tables.rounds_table(document))))
    written = "".join(report_page.details(name, text) for name, text in found.configurations.items())
    sections.append(("Configurations", written))
    meta = {"scenario": document["scenario"], "when": document["when"], "machine": document["machine"]}
    meta["setting"] = tables.heading(document)
    return report_page.page(document["title"], sections, meta)


def text(document: dict[str, Any], level: int = 1) -> str:
    """Return the report as Markdown. level: of its heading."""
    parts = [f"{'#' * level} {document['title']}", document["shows"].strip()]
    parts.append(f"{tables.heading(document)}. Measured {document['when']} on {document['machine']}.")
    parts += [f"> {line}" for line in document["notes"]]
    parts.append(tables.markdown(*tables.main_table(document)))
    if document["verdict"]:
        parts.append(tables.markdown(*tables.verdict_table(document)))
    for extra in (tables.kinds_table(document), tables.utilisation_table(document)):
        if extra:
            parts.append(tables.markdown(*extra))
    if level == 1:
        parts.append(tables.LEGEND)
    return "\n\n".join(parts) + "\n"
