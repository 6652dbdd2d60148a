"""The plots of a comparison: how balancers stand to each other, and what went on over time, events marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from testbed.compare import tables
from testbed.compare.figures import references, times_of, usable
from testbed.compare.measure import Run
from testbed.compare.outcome import ratio_of
from testbed.compare.runner import CENTRAL, CLAIRVOYANT, OVER_PATH, Comparison
from testbed.compare.scenario import Scenario

_BIN_S = 0.5
_POINTS = 2500  # requests shown as dots in a plot over time
_QUANTILES = 1 - np.logspace(0, -4, 160)
_DASHES = {CENTRAL: "dot", OVER_PATH: "dashdot", CLAIRVOYANT: "dash"}
_COLOURS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
)
_LAYOUT = {
    "template": "plotly_white",
    "margin": {"l": 70, "r": 20, "t": 30, "b": 45},
    "font": {"size": 12},
    "legend": {"orientation": "h", "y": -0.18},
}

Plots = list[tuple[str, Any]]


def overall(document: dict[str, Any], found: Comparison) -> Plots:
    """How the balancers stand to each other."""
    plots: Plots = [("Completion times: share of requests that took longer", _tails(document, found))]
    if len(document["balancers"]) > 1:
        plots.insert(0, (f"Beside {document['base']}: ratios with 95 % intervals", _ratios(document)))
    return plots


def over_time(document: dict[str, Any], found: Comparison) -> Plots:
    """One round over time: all balancers together, then each of them with its servers."""
    shown = [(one["name"], usable(found, one["name"])[0]) for one in tables.in_order(document)]
    plots: Plots = []
    if shown:
        plots.append(("Completion times over time (p99 of each half second; one round)", _together(found, shown)))
    # Vickrey first: there one sees the controller react.
    shown.sort(key=lambda pair: not pair[0].startswith("vickrey"))
    plots += [(f"{name} over time", _one(found, run)) for name, run in shown]
    return plots


def _ratios(document: dict[str, Any]) -> Any:
    import plotly.graph_objects as go  # type: ignore[import-untyped]

    rivals = [one for one in reversed(tables.in_order(document)) if one["name"] != document["base"]]
    figure = go.Figure()
    for name, colour in (("p99", "#ff7f0e"), ("mean", "#1f77b4")):
        ratios = [ratio_of(one["to_base"][name]) for one in rivals]
        figure.add_scatter(
            y=[one["name"] for one in rivals],
            x=[ratio.ratio for ratio in ratios],
            name=name,
            mode="markers",
            marker={"color": colour, "size": 9},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [ratio.high - ratio.ratio for ratio in ratios],
                "arrayminus": [ratio.ratio - ratio.low for ratio in ratios],
            },
        )
    figure.add_vline(x=1, line_color="#333", line_width=1)
    figure.update_layout(**_LAYOUT, height=150 + 34 * len(rivals), xaxis_title=f"times that of {document['base']}")
    figure.update_xaxes(type="log")
    figure.update_yaxes(automargin=True)
    return figure


def _tails(document: dict[str, Any], found: Comparison) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, one in enumerate(tables.in_order(document)):
        fct = np.concatenate([times_of(run).fct_ms for run in usable(found, one["name"])])
        _add_tail(figure, fct, one["name"], _COLOURS[i % len(_COLOURS)], "solid")
    for reference in document["references"]:
        fct = np.concatenate([times_of(one).fct_ms for one in references(found, reference["name"])])
        _add_tail(figure, fct, reference["name"], "#555", _DASHES[reference["name"]])
    figure.update_layout(**_LAYOUT, height=460, xaxis_title="FCT, ms", yaxis_title="share that took longer")
    figure.update_xaxes(type="log", autorangeoptions_minallowed=0)  # 1 ms: the axis counts in powers of ten
    figure.update_yaxes(type="log", dtick=1)
    return figure


def _add_tail(figure: Any, fct: Any, name: str, colour: str, dash: str) -> None:
    kept = _QUANTILES[(1 - _QUANTILES) * len(fct) >= 1]  # no quantile beyond the largest of so many
    line = {"color": colour, "dash": dash, "width": 1.6}
    figure.add_scatter(x=_short(np.quantile(fct, kept)), y=_short(1 - kept), name=name, mode="lines", line=line)


def _bins(run: Run) -> tuple[Any, Any, Any]:
    """Of each half second by arrival: its middle (0: end of the warm-up), mean and p99 of the FCTs there."""
    times = times_of(run, from_start=True)
    slot = (times.arrival_s - run.traffic.warmup_s) / _BIN_S
    slot = np.floor(slot).astype(int)
    middle, mean, p99 = [], [], []
    for i in np.unique(slot):
        here = times.fct_ms[slot == i]
        middle.append((i + 0.5) * _BIN_S)
        mean.append(here.mean())
        p99.append(np.percentile(here, 99))
    return middle, _short(mean), _short(p99)


def _together(found: Comparison, shown: Sequence[tuple[str, Run]]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, (name, run) in enumerate(shown):
        middle, _, p99 = _bins(run)
        line = {"color": _COLOURS[i % len(_COLOURS)], "width": 1.6}
        figure.add_scatter(x=middle, y=p99, name=name, mode="lines", line=line)
    _mark(figure, found.scenario)
    figure.update_layout(**_LAYOUT, height=420, xaxis_title="seconds after the warm-up", yaxis_title="p99 of FCT, ms")
    figure.update_yaxes(type="log")
    return figure


def _one(found: Comparison, run: Run) -> Any:
    """FCTs, busy workers, queues; of Vickrey also weights, bids and flows in flight: on one axis of time."""
    from plotly.subplots import make_subplots  # type: ignore[import-untyped]

    telemetry = run.telemetry
    rows = [("FCT, ms", ""), ("busy share", "busy"), ("queued", "queued")]
    rows += [
        (title, column)
        for title, column in (("weight", "weight"), ("bid, ms", "bid"), ("in flight", "in_flight"))
        if telemetry.has(column)
    ]
    cores = _cpu_shares(run)
    shared = "" if len(telemetry.processes()) == len(found.names) else "<br>by process"
    if cores is not None:
        rows.append((f"CPU, cores{shared}", "cpu_s"))
    if telemetry.has("memory"):
        rows.append((f"memory, MB{shared}", "memory"))
    figure = make_subplots(
        len(rows), 1, shared_xaxes=True, vertical_spacing=0.02, row_heights=[2.2, *[1.0] * (len(rows) - 1)]
    )
    _add_requests(figure, run, found.names)
    figure.add_vrect(x0=-run.traffic.warmup_s, x1=0, fillcolor="#999", opacity=0.12, line_width=0)
    at = _short(np.array(telemetry.at_s) - run.traffic.warmup_s)
    for row, (title, column) in enumerate(rows, 1):
        scale = "log" if column in ("", "bid") else "linear"
        figure.update_yaxes(title_text=title, type=scale, row=row, col=1, title_font_size=11)
        if not column:
            continue
        values = telemetry.column(column)
        if column == "busy":
            values = values / np.maximum(telemetry.column("workers"), 1)
        elif column == "bid":
            values = values * 1e3
        elif column == "memory":
            values = values / 1e6
        elif column == "cpu_s":
            assert cores is not None
            values = cores
        of_process = column in ("cpu_s", "memory")
        groups = telemetry.processes() if of_process else [[i] for i in range(len(found.names))]
        for members in groups:
            i, name = members[0], ", ".join(found.names[j] for j in members)
            line = {"color": _COLOURS[i % len(_COLOURS)], "width": 1.3, "shape": "hv"}
            about = {"name": name, "legendgroup": found.names[i], "showlegend": False}
            figure.add_scatter(x=at, y=_short(values[:, i]), mode="lines", line=line, **about, row=row, col=1)
    figure.update_xaxes(title_text="seconds after the warm-up", row=len(rows), col=1)
    _mark(figure, found.scenario)
    figure.update_layout(**{**_LAYOUT, "legend": {"orientation": "h", "y": 1.03, "yanchor": "bottom"}})
    figure.update_layout(height=280 + 115 * (len(rows) - 1), margin_t=60)
    return figure


def _cpu_shares(run: Run) -> Any:
    """Cores that each server's process used between two samples; None where nobody says."""
    telemetry = run.telemetry
    if not telemetry.has("cpu_s") or len(telemetry) < 2:
        return None
    used = np.diff(telemetry.column("cpu_s"), axis=0) / np.diff(telemetry.at_s)[:, None]
    return np.concatenate([used, used[-1:]]).clip(min=0)


def _add_requests(figure: Any, run: Run, names: Sequence[str]) -> None:
    """Some of the requests as dots, by server, and the mean and p99 of each half second."""
    times = times_of(run, from_start=True)
    chosen = np.sort(np.random.default_rng(1).permutation(len(times.index))[:_POINTS])
    arrival, fct = times.arrival_s[chosen] - run.traffic.warmup_s, times.fct_ms[chosen]
    served = run.result.records["server"][times.index[chosen]]
    said = {name: i for i, name in enumerate(run.result.servers)}
    for i, name in enumerate(names):
        mine = served == said.get(name, -1)
        marker = {"size": 3, "color": _COLOURS[i % len(_COLOURS)], "opacity": 0.5}
        about = {"name": name, "legendgroup": name}
        figure.add_scattergl(
            x=_short(arrival[mine]), y=_short(fct[mine]), mode="markers", marker=marker, **about, row=1, col=1
        )
    middle, mean, p99 = _bins(run)
    for label, values, colour in (("mean", mean, "#000"), ("p99", p99, "#c00")):
        line = {"color": colour, "width": 1.6}
        figure.add_scatter(x=middle, y=values, name=label, mode="lines", line=line, row=1, col=1)


def _mark(figure: Any, scenario: Scenario) -> None:
    """Lines where something happens, through all rows; its name at the first."""
    happens: dict[float, list[str]] = {}
    colour: dict[float, str] = {}
    begins: dict[tuple[float, str], list[str]] = {}
    ends: dict[float, list[str]] = {}
    for event in scenario.events:
        begins.setdefault((event.at, event.what), []).append(event.server)
        if event.until is not None:
            ends.setdefault(event.until, []).append(event.server)
    for (at, what), servers in begins.items():
        happens.setdefault(at, []).append(f"{', '.join(servers)} {what}")
        colour[at] = "#c00"
    for at, servers in ends.items():
        happens.setdefault(at, []).append(f"{', '.join(servers)} well again")
        colour.setdefault(at, "#080")
    for step in scenario.profile:
        happens.setdefault(step.at, []).append(f"load {step.load:.0%}")
    for at, names in happens.items():
        figure.add_vline(x=at, line_dash="dot", line_color=colour.get(at, "#888"))
        figure.add_annotation(
            x=at, y=1, xref="x", yref="y domain", text="; ".join(names), showarrow=False, xanchor="left", yanchor="top"
        )


def _short(values: Any) -> list[float | None]:
    """Four digits are enough for the eye, and make the page a quarter as large."""
    return [None if value != value else float(f"{value:.4g}") for value in np.asarray(values, dtype=float).tolist()]
