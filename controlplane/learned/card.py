"""What a policy file tells of itself, for people: the rows of `vickrey policy show FILE`, and its model card."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from controlplane.learned.manifest import Manifest, Range
from controlplane.learned.policy_file import Parameters

Row = list[str]

KINDS = {
    "curves": "corrections of the base policy's bid curves",
    "discrete": "a weight of a few for each server",
    "weights": "a weight for each server",
}


def about(path: Path, parameters: Parameters, m: Manifest) -> list[Row]:
    """Return key and value of everything but the ranges and the evaluation."""
    weights = sum(values.size for values in parameters.values())
    t = m.training
    rows = [
        ["file", str(path)],
        ["name", m.name],
        ["description", m.description],
        ["agent", m.agent],
        ["actions", f"{m.schema.kind}: {KINDS.get(m.schema.kind, '')}"],
        ["levels", ", ".join(f"{level:g}" for level in m.schema.levels) + f", decoded as the {m.decode}"],
    ]
    if m.schema.kind == "curves":
        rows.append(["heads", f"{_list(m.schema.row_heads)} of each server; {_list(m.schema.global_heads)} of all"])
        rows.append(["bounds", ", ".join(f"{key} ×÷{math.exp(b):.3g}" for key, b in m.schema.bounds.items())])
    else:
        rows.append(["rule", m.rule])
    rows += [
        ["base policy", m.base if isinstance(m.base, str) else json.dumps(m.base)],
        ["network", f"{weights:,} weights, {m.hidden} hidden units a server"],
        ["features", f"version {m.feature_version}"],
        ["servers", f"trained with {_span(m.ranges.servers)}, at most {m.servers_max}"],
        ["balancers", f"trained with {_span(m.ranges.balancers)}"],
        ["interval", f"{m.interval:g} s"],
        ["trained by", t.command],
        ["commit", t.commit],
        ["scenario", t.scenario],
        ["seed", str(t.seed)],
        ["steps", f"{t.steps:,}"],
        ["wall time", f"{t.seconds:,.0f} s"],
        *([f"  {key}", value] for key, value in flat(t.hyper_parameters)),
        ["sha256", m.sha256],
    ]
    return [row for row in rows if row[1]]


def range_rows(m: Manifest) -> list[Row]:
    """Return each input with its range in training."""
    parts = (("server", m.server_columns, m.ranges.rows), ("all", m.global_columns, m.ranges.whole))
    return [[of, name, *_numbers(ranges[name])] for of, names, ranges in parts for name in names]


RANGE_COLUMNS = ["OF", "INPUT", ">MEAN", ">STD", ">1 %", ">99 %"]


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[Row]:
    """Yield the leaves of nested mappings as key and text."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield [f"{prefix}{key}", f"{value:.5g}"]
        else:
            yield [f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]


def card(path: Path, parameters: Parameters, m: Manifest) -> str:
    """Return the model card, Markdown: made of the manifest alone, so that it says what the file says."""
    lines = [f"# {m.name}", ""]
    if m.description:
        lines += [m.description, ""]
    lines += [
        f"A policy file of Vickrey ([policy files](../learning.md#policy-files)): {KINDS.get(m.schema.kind, '')}, "
        f"learned by `{m.agent}` on top of `{m.base_name}`.",
        "",
        "## What it is",
        "",
        *_table(["", ""], [row for row in about(Path(path.name), parameters, m) if not row[0].startswith("  ")]),
    ]
    if m.training.hyper_parameters:
        lines += ["", "## Hyper-parameters", "", *_table(["", ""], list(flat(m.training.hyper_parameters)))]
    lines += ["", "## Evaluation", ""]
    lines += _evaluation(m.evaluation) if m.evaluation else ["It was not evaluated."]
    lines += [
        "",
        "## Where it may be used",
        "",
        "It corrects its base policy within bounds and fades out as a farm departs from the ranges below, which hold",
        "98 % of what it saw in training. Inputs have no unit: most are logarithms of ratios.",
        "",
        *_table(RANGE_COLUMNS, range_rows(m)),
    ]
    return "\n".join(lines) + "\n"


def evaluation(tree: Mapping[str, Any]) -> tuple[list[Row], list[tuple[str, Row, list[Row]]]]:
    """Return the plain values as key and text, and of each list of mappings title, columns and rows."""
    tables = []
    for key, value in tree.items():
        if _is_table(value):
            names = list(dict.fromkeys(name for entry in value for name in entry))
            rows = [[_cell(entry.get(name)) for name in names] for entry in value]
            tables.append((key, [name.replace("_", " ") for name in names], rows))
    return list(flat({key: value for key, value in tree.items() if not _is_table(value)})), tables


def _evaluation(tree: Mapping[str, Any]) -> list[str]:
    plain, tables = evaluation(tree)
    lines = _table(["", ""], plain) if plain else []
    for title, columns, rows in tables:
        lines += ["", f"### {title}", "", *_table(columns, rows)]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(columns: list[str], rows: list[Row]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    marks = ["---:" if column.startswith(">") else "---" for column in columns]
    return [line([column.lstrip(">") for column in columns]), "|" + "|".join(marks) + "|", *(line(row) for row in rows)]


def _numbers(r: Range) -> Row:
    return [f"{value:.3g}" for value in (r.mean, r.std, r.low, r.high)]


def _span(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]} to {pair[1]}"


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
