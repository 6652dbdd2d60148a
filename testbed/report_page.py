"""One self-contained HTML page for a report: prose, tables and plotly's plots, which work without a network.

page("Unequal speeds", [("Figures", table(columns, rows)), ("Over time", plot(figure))], {"machine": "2 cores"})
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_MARK = 'class="plotly-graph-div"'
_CODE, _AS_CODE = re.compile(r"`([^`]*)`"), r"<code>\1</code>"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.7rem; margin-bottom: 0.3rem; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1rem; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #d8dee6; }
th:first-child, td:first-child { text-align: left; }
tr.first td { font-weight: 600; background: #eef6ee; } tr.bad td { color: #a33; }
.wide { overflow-x: auto; } .meta { color: #5b6875; font-size: 13px; } .meta b { font-weight: 600; }
pre { background: #f4f6f8; padding: 0.7rem; overflow-x: auto; font-size: 12px; } summary { cursor: pointer; }
.note { border-left: 4px solid #d29922; background: #fff8e6; padding: 0.4rem 0.8rem; margin: 0.6rem 0; }
"""


def page(title: str, sections: Sequence[tuple[str, str]], meta: Mapping[str, Any]) -> str:
    """Return the page. sections: heading (may be empty) and HTML; meta: what stands under the title."""
    body = "\n".join(
        f"<section>{f'<h2>{escape(heading)}</h2>' if heading else ''}\n{html}</section>" for heading, html in sections
    )
    script = ""
    if _MARK in body:
        script = f"<script>{_plotly_script()}</script>"
    about = " · ".join(f"<b>{escape(str(key))}</b> {escape(str(value))}" for key, value in meta.items())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>{script}</head>\n'
        f'<body><h1>{escape(title)}</h1>\n<p class="meta">{about}</p>\n{body}\n</body></html>\n'
    )


def _plotly_script() -> str:
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    text: str = get_plotlyjs()
    return text.replace("</script", "<\\/script")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] | None = None) -> str:
    """Return a table, its text escaped. classes: of each row: 'first', 'bad' or ''."""
    head = "".join(f"<th>{escape(column.lstrip('>'))}</th>" for column in columns)
    marks = classes or [""] * len(rows)
    lines = (
        f'<tr class="{mark}">' + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row, mark in zip(rows, marks, strict=True)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def plot(figure: Any) -> str:
    """Return a plotly figure as HTML; `page` adds plotly's script once."""
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return html


def prose(text: str) -> str:
    """Return paragraphs as HTML; names in `backticks` become code."""
    paragraphs = (" ".join(part.split()) for part in text.strip().split("\n\n"))
    return "".join(f"<p>{_CODE.sub(_AS_CODE, escape(part))}</p>" for part in paragraphs)


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def details(summary: str, text: str) -> str:
    """Return a text that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
