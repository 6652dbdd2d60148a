"""What a run of the round-based simulation leaves: its document, its tables, and a folder of files.

rounds.csv     a row a round                         servers.csv   a row a server
history.csv    a row a round and server              *.png         each metric, and overview.png
result.json    scenario, summary, servers, rounds    report.html   every metric, interactive, one file

After a long run disk or memory may not suffice: each file is made and written before the next, those that say most in
the least room first, and only rounds.csv, written in parts, grows with the rounds beyond a bound.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from controlplane.auction.metrics import COLUMNS
from controlplane.auction.rounds import Simulation
from controlplane.auction.tasks import CLASSES
from controlplane.command import CommandError
from controlplane.table import number, percent

ROWS = 40  # servers in the tables of the terminal and the page
HISTORY_ROWS = 1_000_000  # of history.csv; of a longer run every k-th round
SERIES_ROUNDS = 10_000  # in result.json; of a longer run every k-th round
_PART = 10_000  # rows of rounds.csv that are made at a time


def document(simulation: Simulation, seconds: float) -> dict[str, Any]:
    """Return what --json prints; numbers that are not finite are null."""
    scenario, metrics, farm, demand = simulation.scenario, simulation.metrics, simulation.farm, simulation.demand
    found = {
        "scenario": scenario.model_dump(mode="json"),
        "effective": {
            "tasks_base": demand.base,
            "tasks_amplitude": demand.amplitude,
            "task_load": list(demand.load),
            "processing_rate": scenario.rate(),
        },
        "interrupted": metrics.done < scenario.rounds,
        "seconds": seconds,
        "summary": metrics.summary(),
        "servers": [
            {
                "server": i,
                "capacity": float(farm.capacity[i]),
                "coalition": int(farm.coalition[i]),
                "processing_rate": float(farm.rate[i]),
                "risk_aversion": float(farm.risk_aversion[i]),
                "sensitivity_first": float(farm.sensitivity[i]),
                "sensitivity": float(simulation.sensitivity[i]),
                "load": float(simulation.load[i]),
                "load_ratio_mean": float(metrics.mean_ratio[i]),
                "wins": int(metrics.wins[i]),
                "work_share": _share(float(metrics.work[i]), float(metrics.work.sum())),
                "shapley_spare_mean": float(farm.capacity[i] - metrics.mean_load[i]),
            }
            for i in range(farm.n)
        ],
    }
    tidy: dict[str, Any] = _finite(found)
    return tidy


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the figures of a run over its rounds."""
    s, events = found["summary"], found["summary"]["events"]
    rows = [
        ["social welfare, mean", number(s["welfare"], 1)],
        ["fairness: deviation of loads, mean", number(s["fairness_std"], 2)],
        ["fairness: Jain's index, mean", number(s["jain"], 3)],
        ["load ratio, mean", number(s["load_ratio"], 3)],
        ["reserve, last", number(s["reserve"], 2)],
        ["winning bid, mean", number(s["bid"], 2)],
        ["completion, mean, rounds", number(s["completion"], 2)],
        ["tasks", number(s["tasks"])],
        ["awards: normal", number(events["normal"])],
        ["awards: above the reserve", number(events["above"])],
        ["awards: coalition", number(events["coalitions"])],
        ["awards: gold outbid", number(events["outbid"])],
        ["deferrals", number(events["deferred"])],
    ]
    return ["over all rounds", ">"], rows


def class_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return how each SLA level fared."""
    columns = ["SLA", ">awarded", ">completion", ">late", ">deferrals a task", ">above the reserve"]
    rows = []
    for sla in CLASSES:
        c = found["summary"]["classes"][sla]
        rows.append(
            [
                sla,
                number(c["awarded"]),
                number(c["completion"], 2),
                percent(c["miss_share"]),
                number(c["deferrals_per_task"], 3),
                number(c["above_reserve"]),
            ]
        )
    return columns, rows


def server_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return what each server did and has to spare; the first ROWS of them."""
    columns = [
        "server",
        ">capacity",
        ">coalition",
        ">load ratio",
        ">sensitivity",
        ">wins",
        ">share of work",
        ">Shapley value",
    ]
    rows = [
        [
            str(s["server"]),
            number(s["capacity"], 1),
            str(s["coalition"]),
            number(s["load_ratio_mean"], 3),
            f"{s['sensitivity_first']:.2f} → {s['sensitivity']:.2f}",
            number(s["wins"]),
            percent(s["work_share"]),
            number(s["shapley_spare_mean"], 1),
        ]
        for s in found["servers"][:ROWS]
    ]
    return columns, rows


def heading(found: dict[str, Any]) -> str:
    """Return one line that says what was run."""
    scenario, summary = found["scenario"], found["summary"]
    servers, tasks = len(found["servers"]), found["effective"]["tasks_base"]
    name = scenario["title"] or "auction"
    return (
        f"{name}: {summary['rounds']:,} rounds, {servers:,} servers, {tasks:g} tasks a round, "
        f"mode {scenario['mode']}, split {scenario['auction']['split']}, seed {scenario['seed']}"
    )


def rounds_csv(simulation: Simulation) -> Iterator[str]:
    """Yield a header and a row a round, many lines at a time; empty where there was nothing to measure."""
    rows = simulation.metrics.rows
    yield ",".join(COLUMNS) + "\n"
    for start in range(0, len(rows), _PART):
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            ["" if value != value else f"{value:.9g}" if isinstance(value, float) else value for value in row]
            for row in rows[start : start + _PART].tolist()
        )
        yield text.getvalue()


def history_csv(simulation: Simulation) -> Iterator[str]:
    """Yield a header and a row a round and server, in a long run every k-th round: its load, sensitivity and φ."""
    metrics, capacity = simulation.metrics, simulation.farm.capacity
    every = max(1, math.ceil(metrics.loads.size / HISTORY_ROWS))
    yield "round,server,load,sensitivity,shapley\n"
    kept = (metrics.history_rounds[::every], metrics.loads[::every], metrics.sensitivities[::every])
    for number_of, load, sensitivity in zip(*kept, strict=True):
        spare = capacity - load.astype(np.float64)
        rows = zip(load.tolist(), sensitivity.tolist(), spare.tolist(), strict=True)
        yield "".join(f"{number_of},{i},{a:.6g},{b:.6g},{c:.6g}\n" for i, (a, b, c) in enumerate(rows))


def series(simulation: Simulation) -> dict[str, Any]:
    """Return as `rounds` each column of rounds.csv, numbers that are not finite null; of a long run those of every k-th
    round, the last one included, and k as `rounds_every`."""
    rows = simulation.metrics.rows
    every = max(1, math.ceil(len(rows) / SERIES_ROUNDS))
    kept = rows[(len(rows) - 1) % every :: every]
    return {"rounds_every": every, "rounds": _finite({name: kept[name].tolist() for name in COLUMNS})}


def servers_csv(found: dict[str, Any]) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, list(found["servers"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found["servers"])
    return text.getvalue()


class Folder:
    """Where a run's files go. Made at once, and what plots need looked for: what is wrong is said before the work."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder)
        for package in ("matplotlib", "plotly"):
            if find_spec(package) is None:
                raise CommandError(f"--out draws plots with {package}, which is not installed: needs vickrey[testbed]")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"{folder}: {(error.strerror or str(error)).lower()}") from None

    def write(self, simulation: Simulation, found: dict[str, Any]) -> list[Path]:
        """Write everything; return the paths. CommandError when a file cannot be written: those before it are there."""
        from controlplane.auction import plots
        from testbed.report_page import table

        title = heading(found)
        written = []

        def put(name: str, parts: Iterable[str]) -> None:
            _write(self.path / name, parts)
            written.append(self.path / name)

        try:
            put("result.json", [json.dumps(found | series(simulation), indent=None), "\n"])
            put("servers.csv", [servers_csv(found)])
            put("rounds.csv", rounds_csv(simulation))
            put("history.csv", history_csv(simulation))
            if simulation.metrics.done:
                drawn = plots.panels(simulation)
                written += plots.save_png(drawn, self.path, title)
                tables = [("Summary", table(*summary_table(found))), ("SLA levels", table(*class_table(found)))]
                tables.append(("Servers", table(*server_table(found))))
                about = {"seed": found["scenario"]["seed"], "seconds": f"{found['seconds']:.1f}"}
                put("report.html", [plots.html(drawn, title, tables, about)])
        except OSError as error:
            raise CommandError(f"{error.filename or self.path}: {(error.strerror or str(error)).lower()}") from None
        return written


def _write(path: Path, parts: Iterable[str]) -> None:
    """Write a file that appears whole or not at all."""
    part = path.with_name(f".{path.name}.part{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(parts)
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # by the name that people know
    finally:
        part.unlink(missing_ok=True)
