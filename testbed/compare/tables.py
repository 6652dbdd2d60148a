"""The tables of a comparison, as columns and rows of text: for the terminal, for Markdown and for the HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from controlplane.table import NOTHING, milliseconds, number, percent
from testbed.compare.outcome import ratio_of
from testbed.compare.variant import TOLD

Table = tuple[list[str], list[list[str]]]


def main_table(found: dict[str, Any]) -> Table:
    """Who was how good: best mean first, references at the end."""
    base = found["base"] or ""
    columns = ["balancer", ">mean ms", ">p50", ">p90", ">p99", ">p99.9", ">slowdown", ">Jain", ">errors", ">unanswered"]
    columns += [">CPU µs", f">mean, × {base}", f">p99, × {base}", ">mean, × central queue"]
    rows = []
    for one in in_order(found):
        mark = "" if one["valid_rounds"] else " (INVALID)"
        row = [one["name"] + mark, *_times(one), number(one["jain"], 2), str(one["errors"]), str(one["unanswered"])]
        row.append(_cpu(one))
        if one["name"] == base:
            row += ["1", "1"]
        else:
            row += [str(ratio_of(one["to_base"][figure])) if one["to_base"] else NOTHING for figure in ("mean", "p99")]
        row.append(str(ratio_of(one["to_central"]["mean"])) if one["to_central"] else NOTHING)
        rows.append(row)
    for one in found["references"]:
        rows.append([one["name"], *_times(one), *[NOTHING] * 6, str(ratio_of(one["to_central"]["mean"]))])
    return columns, rows


def in_order(found: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(found["balancers"], key=lambda one: one["rank"])


def _times(one: dict[str, Any]) -> list[str]:
    return [milliseconds(one[name]) for name in ("mean", "p50", "p90", "p99", "p999")] + [number(one["slowdown"], 1)]


def _cpu(one: dict[str, Any]) -> str:
    """Of the whole process tree; in brackets of the data plane alone, where there is more."""
    if one["cpu_data_us"] is None:
        return number(one["cpu_us"])
    return f"{number(one['cpu_us'])} ({number(one['cpu_data_us'])})"


def verdict_table(found: dict[str, Any]) -> Table:
    """`vickrey adaptive` against the best setting of each competitor."""
    columns = ["against the best of each", "knew", "figure", ">ratio", "", "aim"]
    rows = []
    for row in found["verdict"]:
        knew = "the truth" if row["told"] else "nothing"
        aim = NOTHING if row["meets"] is None else "met" if row["meets"] else "missed"
        rows.append([row["theirs"], knew, row["figure"], str(ratio_of(row)), row["word"], aim])
    return columns, rows


def kinds_table(found: dict[str, Any]) -> Table | None:
    """Of each kind of requests, where there are several."""
    kinds = dict.fromkeys(kind for one in found["balancers"] for kind in one["kinds"])
    if not kinds:
        return None
    columns = ["balancer", *(f">{kind}: {figure} ms" for kind in kinds for figure in ("mean", "p99"))]
    rows = []
    for one in in_order(found):
        cells = [milliseconds(one["kinds"].get(kind, {}).get(figure)) for kind in kinds for figure in ("mean", "p99")]
        rows.append([one["name"], *cells])
    return columns, rows


def utilisation_table(found: dict[str, Any]) -> Table | None:
    """How busy each server's workers were, as the servers say."""
    names = [f">{server['name']}" for server in found["servers"]]
    rows = [[one["name"], *map(percent, one["utilisation"])] for one in in_order(found) if one["utilisation"]]
    if not rows or len(rows[0]) != len(names) + 1:
        return None
    return ["busy workers", *names], rows


def rounds_table(found: dict[str, Any]) -> Table:
    columns = ["balancer", ">round", ">mean ms", ">p99", ">errors", ">late p99 ms", ">CPU busy", ">by others", "marks"]
    rows = []
    for one in in_order(found):
        for run in one["rounds"]:
            marks = "; ".join(run["invalid"] + run["notes"])
            times = [milliseconds(run["mean"]), milliseconds(run["p99"]), str(run["errors"])]
            shares = [percent(run["busy"]), percent(run["others"])]
            rows.append([one["name"], str(run["round"] + 1), *times, milliseconds(run["late_p99_ms"]), *shares, marks])
    return columns, rows


def heading(found: dict[str, Any]) -> str:
    settings = found["settings"]
    servers = len(found["servers"])
    overhead = found["direct_overhead_ms"]
    path = f"; the direct path takes {overhead:.2f} ms" if overhead is not None else ""
    what = f"{servers} servers" if servers else f"topology {settings.get('topology')}"
    load = f"{settings['load']:.0%} of capacity" + (", changing" if settings.get("profile") else "")
    rounds = settings["rounds"]
    return (
        f"{what}, {load}, {rounds} round{'s' * (rounds > 1)} of {settings['seconds']} after {settings['warmup']} of"
        f" warm-up, seed {settings['seed']}{path}"
    )


LEGEND = f"""\
FCT: flow completion time from the scheduled arrival to the last byte, errors left out, the unanswered counted with the
age they reached. Slowdown: mean of FCT over the time that the fastest server alone would take. Jain: of the servers'
utilisation, as they report it. CPU: of all the balancer's processes, a request; in brackets of the data plane alone.
{" ".join(f"+{option}" for option in TOLD)}: told the true speeds or worker counts, which the others had to do without.
Brackets behind ratios: 95 % intervals, paired by round."""


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "| " + " | ".join(column.lstrip(">") for column in columns) + " |"
    line = "|" + "|".join("--:" if column.startswith(">") else "---" for column in columns) + "|"
    return "\n".join([head, line, *("| " + " | ".join(row) + " |" for row in rows)])
