"""The HTML page of a replay: figures, percentiles, the course, lateness, errors, and where it comes from."""

from __future__ import annotations

from typing import Any

import numpy as np

from testbed.demand import Floats
from testbed.report_page import details, note, page, plot, table

_COLOURS = {"p50": "#2b8a3e", "p90": "#1971c2", "p99": "#e8590c", "max": "#adb5bd"}
_NAMES = {
    "min": "min",
    "mean": "mean",
    "p50": "p50",
    "p90": "p90",
    "p95": "p95",
    "p99": "p99",
    "p999": "p99.9",
    "max": "max",
}
_POINTS = 400


def html(found: dict[str, Any], fct_s: Floats) -> str:
    """Return the page. found: results.document; fct_s: completion times of what was answered, seconds."""
    trace, origin, settings = found["trace"], found["origin"], found["settings"]
    meta = {
        "target": settings["target"],
        "trace": f"{trace['name']} ({trace['format']})",
        "seed": settings["seed"],
        "began": origin["began"],
        "version": origin["version"],
        "commit": origin["commit"] or "none",
        "configuration": origin["config_sha256"][:16],
        "machine": origin["machine"],
        "load average": f"{origin['load_average']:.2f} before, {origin['load_average_after']:.2f} after",
    }
    sections = [
        ("", "".join(note(problem) for problem in found["problems"])),
        ("Figures", _figures(found)),
        ("Completion times", plot(_distribution(fct_s)) if len(fct_s) else "<p>Nothing was answered.</p>"),
        ("Over time", plot(_course(found["series"]))),
        ("Lateness of the generator", _lateness(found)),
        ("Errors", _errors(found)),
    ]
    if found["servers"]:
        sections.append(("Servers", _servers(found)))
    sections.append(("Where it comes from", _origin(found)))
    return page(f"Replay of {trace['name']}", [one for one in sections if one[1]], meta)


def _figures(found: dict[str, Any]) -> str:
    from controlplane.table import milliseconds, number

    requests, load, seconds = found["requests"], found["load"], found["seconds"]
    fct = table(
        ["completion times, ms", *(f">{name}" for name in _NAMES.values())],
        [
            ["from the scheduled arrival", *(milliseconds(found["fct_ms"][name]) for name in _NAMES)],
            *(
                [["with timeouts: at least", *(milliseconds(least[name]) if name in least else "" for name in _NAMES)]]
                if (least := found["fct_at_least_ms"])
                else []
            ),
        ],
    )
    offered = "-" if load["load"] is None else f"{load['load']:.3f} of {load['capacity_per_s']:,.6g} {load['unit']}/s"
    success = "-" if requests["success"] is None else f"{100 * requests['success']:.2f}%"
    rows = [
        ["requests sent", f"{requests['sent']:,} of {requests['scheduled']:,}"],
        ["rate, throughput", f"{number(requests['rate_per_s'], 1)}/s, {number(requests['throughput_per_s'], 1)}/s"],
        ["answered well", success],
        ["load offered", offered],
        ["speed of the trace", f"x{found['trace']['speed']:.4g}"],
        ["duration", f"{seconds['sending']:.1f} s of sending, {seconds['waiting']:.1f} s for the last answers"],
        ["bytes received", f"{found['bytes_in']:,}"],
        ["generator", f"{number(found['generator']['cpu_us_per_request'])} µs of CPU a request,"
         f" {100 * found['generator']['cpu_share']:.0f}% of a core"],
    ]  # fmt: skip
    return fct + table(["", ""], rows)


def _distribution(fct_s: Floats) -> Any:
    """Completion time by percentile, the axis stretched towards 100 % as HdrHistogram's plotter does."""
    import plotly.graph_objects as go  # type: ignore[import-untyped]

    n = len(fct_s)
    nines = np.linspace(0, np.log10(max(n, 2)), _POINTS)
    share = 1 - 10**-nines
    values = np.quantile(fct_s, share, method="higher") * 1e3
    ticks = [t for t in (1, 2, 10, 100, 1_000, 10_000, 100_000, 1_000_000) if t <= max(n, 10)]
    figure = go.Figure(
        go.Scatter(
            x=(10**nines).tolist(), y=values.tolist(), mode="lines", line={"color": "#1971c2"},
            customdata=(100 * share).tolist(), hovertemplate="%{customdata:.3f}%: %{y:.2f} ms<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(
        type="log", title="percentile", tickvals=ticks, ticktext=[f"{100 * (1 - 1 / t):.6g}%" for t in ticks]
    )
    figure.update_yaxes(title="ms", rangemode="tozero")
    figure.update_layout(template="plotly_white", height=380, margin={"t": 20, "l": 60, "r": 20, "b": 50})
    return figure


def _course(series: dict[str, Any]) -> Any:
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots  # type: ignore[import-untyped]

    bin_s = series["bin_s"]
    every = "second" if bin_s == 1 else f"{bin_s:g} s"
    titles = (f"completion times of the requests of each {every}, ms", "requests a second", "in flight")
    figure = make_subplots(
        rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.5, 0.3, 0.2], subplot_titles=titles
    )
    t = series["t_s"]
    for name, colour in reversed(_COLOURS.items()):
        figure.add_trace(_line(go, t, series[name], name, colour), row=1, col=1)
    figure.add_trace(_line(go, t, series["sent_per_s"], "sent", "#495057"), row=2, col=1)
    figure.add_trace(_line(go, t, series["answered_per_s"], "answered", "#2b8a3e"), row=2, col=1)
    if any(series["errors_per_s"]):
        figure.add_trace(_line(go, t, series["errors_per_s"], "errors", "#c92a2a"), row=2, col=1)
    figure.add_trace(_line(go, t, series["in_flight"], "in flight", "#7048e8"), row=3, col=1)
    values = [v for name in _COLOURS for v in series[name] if v]
    if values and max(values) > 50 * float(np.median(values)):
        figure.update_yaxes(type="log", row=1, col=1)
    else:
        figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(rangemode="tozero", row=2, col=1)
    figure.update_yaxes(rangemode="tozero", row=3, col=1)
    figure.update_xaxes(title="s", row=3, col=1)
    figure.update_layout(template="plotly_white", height=720, margin={"t": 40, "l": 60, "r": 20, "b": 50})
    return figure


def _line(go: Any, x: list[float], y: list[Any], name: str, colour: str) -> Any:
    mode = "lines+markers" if len(x) < 60 else "lines"
    return go.Scatter(x=x, y=y, name=name, mode=mode, line={"color": colour}, marker={"size": 4})


def _lateness(found: dict[str, Any]) -> str:
    import plotly.graph_objects as go

    late, series = found["late_ms"], found["series"]
    from controlplane.table import milliseconds

    figures = table(
        ["sent after the scheduled time, ms", ">p50", ">p99", ">max", ">longest standstill"],
        [
            ["measured", *(milliseconds(late[name]) for name in ("p50", "p99", "max", "stall"))],
            ["bound of a valid run", "-", milliseconds(late["p99_bound"]), *[milliseconds(late["max_bound"])] * 2],
        ],
        ["" if found["valid"] else "bad", ""],
    )  # fmt: skip
    figure = go.Figure(
        [
            _line(go, series["t_s"], series["late_max"], "max", _COLOURS["max"]),
            _line(go, series["t_s"], series["late_p99"], "p99", _COLOURS["p99"]),
        ]
    )
    figure.update_yaxes(title="ms late", rangemode="tozero")
    figure.update_xaxes(title="s")
    figure.update_layout(template="plotly_white", height=260, margin={"t": 20, "l": 60, "r": 20, "b": 50})
    return figures + plot(figure)


def _errors(found: dict[str, Any]) -> str:
    sent = max(found["requests"]["sent"], 1)
    rows = [[name, f"{count:,}", f"{100 * count / sent:.2f}%"] for name, count in found["errors"].items()]
    if not rows:
        return "<p>None.</p>"
    return table(["class", ">requests", ">share"], rows, ["bad"] * len(rows))


def _servers(found: dict[str, Any]) -> str:
    from controlplane.table import milliseconds

    rows = [
        [
            row["server"],
            f"{row['answered']:,}",
            f"{100 * row['share']:.1f}%",
            *map(milliseconds, (row["mean"], row["p99"])),
        ]
        for row in found["servers"]
    ]
    return table(["server", ">answered", ">share", ">mean FCT, ms", ">p99, ms"], rows)


def _origin(found: dict[str, Any]) -> str:
    import json

    trace = found["trace"]
    rows = [
        ["trace", f"{trace['name']}, {trace['rows']:,} rows, {trace['bad_rows']['count']:,} bad ones left out"],
        ["rows replayed, SHA-256", trace["sha256"]],
        ["configuration, SHA-256", found["origin"]["config_sha256"]],
    ]
    return table(["", ""], rows) + details("settings", json.dumps(found["settings"], indent=1, ensure_ascii=False))
