"""Plots of the round-based simulation: each metric a PNG, all of them on one interactive page.

A panel says what is drawn; matplotlib and plotly draw the same panels. Both are imported when they are needed. Long
runs are drawn as means over buckets of rounds, many servers as quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.auction.mechanism import Floats, average_tasks
from controlplane.auction.rounds import Simulation
from controlplane.auction.tasks import CLASSES

POINTS = 800  # drawn at most
LINES = 16  # servers drawn one by one at most
QUANTILES = ((0.0, "least"), (0.1, "10 %"), (0.5, "median"), (0.9, "90 %"), (1.0, "most"))
_SLA_COLOURS = {"gold": "#c99700", "silver": "#7b8794", "bronze": "#a0522d"}
_COLOURS = ("#1971c2", "#e8590c", "#2b8a3e", "#9c36b5", "#c92a2a", "#0b7285", "#495057", "#e64980")


@dataclass(frozen=True)
class Line:
    name: str
    y: Floats
    colour: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot. file: the PNG's name without its ending."""

    file: str
    title: str
    unit: str
    x: NDArray[Any]
    lines: Sequence[Line]
    log: bool = False


def thinned(values: NDArray[Any]) -> Floats:
    """Return means over buckets of rows so that POINTS are left at most; NaN counts for nothing."""
    size = -(-values.shape[0] // POINTS)
    if size <= 1:
        return values.astype(np.float64)
    whole = np.full((-(-values.shape[0] // size) * size, *values.shape[1:]), np.nan)
    whole[: values.shape[0]] = values
    parts = whole.reshape(-1, size, *values.shape[1:])
    there = ~np.isnan(parts)
    count = there.sum(axis=1)
    return np.asarray(np.where(count > 0, np.where(there, parts, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan))


def panels(simulation: Simulation) -> list[Panel]:
    """Return every metric as a panel."""
    m, rows = simulation.metrics, simulation.metrics.rows
    x = thinned(rows["round"])

    def of(*names: tuple[str, str] | tuple[str, str, str]) -> list[Line]:
        return [Line(name[1], thinned(rows[name[0]]), *name[2:]) for name in names]

    def classes(column: str) -> list[Line]:
        return [Line(sla, thinned(rows[f"{column}_{sla}"]), _SLA_COLOURS[sla]) for sla in CLASSES]

    demand = simulation.demand
    average = average_tasks(rows["round"], demand.base, demand.amplitude, demand.period)
    kept = thinned(m.history_rounds)
    loads = thinned(m.loads)
    late = [Line(sla, 100 * _share(rows[f"misses_{sla}"], rows[f"awards_{sla}"]), _SLA_COLOURS[sla]) for sla in CLASSES]
    arrived = [*of(("tasks", "arrived")), Line("average", thinned(average), "#495057", True)]
    bids = of(("reserve", "reserve"), ("bid", "mean winning bid"), ("price", "mean second price"))
    events = of(
        ("normal", "normal"),
        ("above", "above the reserve"),
        ("coalitions", "coalition"),
        ("deferred", "deferred"),
        ("outbid", "gold outbid"),
    )
    sensitivities = _servers(thinned(m.sensitivities))
    spare = _servers(simulation.farm.capacity - loads)
    return [
        Panel("tasks", "Tasks", "tasks a round", x, arrived),
        Panel("loads", "Load of each server", "work", kept, _servers(loads)),
        Panel("sensitivities", "Sensitivity of each server", "sensitivity", kept, sensitivities, log=True),
        Panel("reserve", "Reserve and bids", "bid", x, bids),
        Panel("fairness_std", "Fairness: standard deviation of loads", "work", x, of(("fairness_std", "deviation"))),
        Panel("jain", "Fairness: Jain's index of load over capacity", "index", x, of(("jain", "Jain's index"))),
        Panel("welfare", "Social welfare, −Σ |load − capacity · target|", "work", x, of(("welfare", "welfare"))),
        Panel("events", "Auction events", "auctions a round", x, events),
        Panel("shapley", "Shapley values of spare capacity", "work", kept, spare),
        Panel("sla_misses", "SLA misses", "% of a class's awards", x, late),
        Panel("completion", "Completion time", "rounds", x, classes("completion")),
        Panel(
            "deferrals", "Bronze tasks deferred to the next round", "tasks", x, of(("deferred", "deferred", "#a0522d"))
        ),
    ]


def _share(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """Return bucket sums of part over those of whole; NaN where there is nothing."""
    of, among = thinned(part), thinned(whole)
    share: Floats = np.full(among.shape, np.nan)
    np.divide(of, among, out=share, where=among > 0)
    return share


def _servers(history: Floats) -> list[Line]:
    n = history.shape[1]
    if n <= LINES:
        return [Line(f"server {i}", history[:, i], _COLOURS[i % len(_COLOURS)], i >= len(_COLOURS)) for i in range(n)]
    if not history.size:
        return []
    levels = np.quantile(history, [q for q, _ in QUANTILES], axis=1)
    return [Line(name, level) for (_, name), level in zip(QUANTILES, levels, strict=True)]


def save_png(drawn: Sequence[Panel], folder: Path, title: str) -> Iterator[Path]:
    """Write each panel as FILE.png, and all on one sheet as overview.png; yield the paths."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def save(figure: Any, name: str) -> Path:
        path, part = folder / f"{name}.png", folder / f".{name}.part"
        figure.set_canvas(FigureCanvasAgg(figure))
        try:
            figure.savefig(part, format="png")
            part.replace(path)  # an interrupt leaves no half a picture
        finally:
            part.unlink(missing_ok=True)
        return path

    for panel in drawn:
        figure = Figure(figsize=(9, 4.2), dpi=110, layout="constrained")
        _draw(figure.add_subplot(), panel, beside=True)
        yield save(figure, panel.file)
    columns = 3
    sheet = Figure(figsize=(18, 3.3 * -(-len(drawn) // columns) + 0.5), dpi=90, layout="constrained")
    sheet.suptitle(title)
    for i, panel in enumerate(drawn):
        _draw(sheet.add_subplot(-(-len(drawn) // columns), columns, i + 1), panel, beside=False)
    yield save(sheet, "overview")


def _draw(axes: Any, panel: Panel, beside: bool) -> None:
    marker = "o" if panel.x.size < 3 else None
    for i, line in enumerate(panel.lines):
        colour = line.colour or _COLOURS[i % len(_COLOURS)]
        style = "--" if line.dashed else "-"
        axes.plot(panel.x, line.y, style, label=line.name, linewidth=1.0, color=colour, marker=marker)
    axes.set_title(panel.title, fontsize=11, loc="left")
    axes.set_xlabel("round", fontsize=9)
    axes.set_ylabel(panel.unit, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    if panel.log and any(np.nanmax(line.y, initial=0.0) > 0 for line in panel.lines):
        axes.set_yscale("log")
    if len(panel.lines) > 1 and beside:  # not upon the lines
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    elif 1 < len(panel.lines) <= 5:
        axes.legend(fontsize=7, framealpha=0.7, loc="upper right")


def html(drawn: Sequence[Panel], title: str, tables: Sequence[tuple[str, str]], about: dict[str, Any]) -> str:
    """Return one page that needs no network: tables (heading, HTML), then every panel, to zoom and read off."""
    import plotly.graph_objects as go  # type: ignore[import-untyped]

    from testbed.report_page import page, plot

    sections = list(tables)
    for panel in drawn:
        figure = go.Figure()
        for i, line in enumerate(panel.lines):
            dash = "dash" if line.dashed else "solid"
            figure.add_scatter(
                x=panel.x,
                y=line.y.astype(np.float32),
                name=line.name,
                mode="lines" if panel.x.size > 2 else "lines+markers",
                line={"color": line.colour or _COLOURS[i % len(_COLOURS)], "width": 1.3, "dash": dash},
            )
        figure.update_xaxes(title="round")
        figure.update_yaxes(title=panel.unit, type="log" if panel.log else "linear")
        figure.update_layout(
            template="plotly_white",
            height=330,
            margin={"t": 10, "l": 70, "r": 20, "b": 45},
            hovermode="x unified",
            showlegend=len(panel.lines) > 1,
        )
        sections.append((panel.title, plot(figure)))
    return page(title, sections, about)
