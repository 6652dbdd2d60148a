"""Plots as SVG: lines over two axes, and estimates with their intervals. Text in, text out, the same for the same data.

Ours, and not matplotlib's: the report must come out of the base install, and be one file; two kinds of plot are enough.
Colours are Okabe and Ito's, which colour-blind readers can tell apart; light or dark follows the reader's setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7a7a52")
GREY = "#888888"

STYLE = """
.plot { max-width: 100%; height: auto; color: #24292f; font: 12px system-ui, sans-serif; }
.plot text { fill: currentColor; }
.plot .axis { stroke: currentColor; fill: none; }
.plot .grid { stroke: currentColor; stroke-opacity: 0.12; fill: none; }
.plot .mark { stroke: currentColor; stroke-opacity: 0.5; stroke-dasharray: 3 3; fill: none; }
@media (prefers-color-scheme: dark) { .plot { color: #c9d1d9; } }
"""

# Margins around the plane, in pixels. The legend stands to the right.
LEFT, RIGHT, TOP, BOTTOM = 62, 170, 30, 44
LEGEND_LINE = 18


@dataclass(frozen=True, slots=True)
class Series:
    """A line; y may have gaps. dots: points without a line between them."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    title: str
    log: bool = False
    low: float | None = None  # None: from the data
    high: float | None = None
    whole: bool = False  # ticks at whole numbers only


@dataclass(slots=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    log: bool
    begin: float
    end: float
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        f: Callable[[float], float] = math.log10 if self.log else float
        part = (f(value) - f(self.low)) / (f(self.high) - f(self.low))
        return self.begin + part * (self.end - self.begin)

    def shows(self, value: float | None) -> bool:
        return value is not None and math.isfinite(value) and (value > 0 or not self.log)


def _scale(axis: Axis, values: Sequence[float], begin: float, end: float) -> _Scale:
    used = [v for v in values if math.isfinite(v) and (v > 0 or not axis.log)]
    low = axis.low if axis.low is not None else min(used, default=1.0 if axis.log else 0.0)
    high = axis.high if axis.high is not None else max(used, default=1.0)
    if axis.log:
        if high <= low * 1.001:
            low, high = low / 2, high * 2
        scale = _Scale(low, high, True, begin, end)
        scale.ticks = _log_ticks(low, high)
        return scale
    if high <= low:
        low, high = low - 0.5, high + 0.5
    step = _step(high - low, whole=axis.whole)
    if axis.low is None:
        low = math.floor(low / step) * step
    if axis.high is None:
        high = math.ceil(high / step - 1e-9) * step
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return _Scale(low, high, False, begin, end, [(first + i) * step for i in range(count)])


def _step(span: float, *, whole: bool) -> float:
    """Return a round step that divides the span into four to eight parts."""
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    return max(round(step), 1.0) if whole else step


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [f * 10.0**d for d in decades for f in factors]
        ticks = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
        if len(ticks) >= 4:
            break
    return ticks


def _label(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.4f}".rstrip("0").rstrip(".") if abs(value) < 10_000 else f"{value:,.0f}"


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{_px(x)}" y="{_px(y)}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, more: str) -> str:
    return f'<line x1="{_px(x1)}" y1="{_px(y1)}" x2="{_px(x2)}" y2="{_px(y2)}" {more}/>'


def _document(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {_px(width)} {_px(height)}" '
        f'width="{_px(width)}" height="{_px(height)}" role="img">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n"
    )
    heading = _text(LEFT, 17, title, "start", ' font-weight="600"')
    return head + "\n".join([heading, *parts]) + "\n</svg>\n"


def _axes(x: _Scale, y: _Scale, x_title: str, y_title: str) -> list[str]:
    parts = []
    for tick in x.ticks:
        parts.append(_line(x(tick), y.begin, x(tick), y.end, 'class="grid"'))
        parts.append(_text(x(tick), y.begin + 17, _label(tick)))
    for tick in y.ticks:
        parts.append(_line(x.begin, y(tick), x.end, y(tick), 'class="grid"'))
        parts.append(_text(x.begin - 7, y(tick) + 4, _label(tick), "end"))
    parts.append(_line(x.begin, y.begin, x.end, y.begin, 'class="axis"'))
    parts.append(_text((x.begin + x.end) / 2, y.begin + 36, x_title))
    if y_title:
        middle = (y.begin + y.end) / 2
        parts.append(_line(x.begin, y.begin, x.begin, y.end, 'class="axis"'))
        parts.append(_text(14, middle, y_title, more=f' transform="rotate(-90 14 {_px(middle)})"'))
    return parts


def lines(
    title: str,
    series: Sequence[Series],
    x_axis: Axis,
    y_axis: Axis,
    marks: Sequence[tuple[float, str]] = (),
    width: float = 860,
    height: float = 340,
) -> str:
    """Return a plot of lines. marks: vertical lines with a word, at values of x."""
    xs = [v for s in series for v, w in zip(s.x, s.y, strict=True) if w is not None]
    ys = [v for s in series for v in s.y if v is not None]
    x = _scale(x_axis, xs, LEFT, width - RIGHT)
    y = _scale(y_axis, ys, height - BOTTOM, TOP)
    parts = _axes(x, y, x_axis.title, y_axis.title)
    for at, word in marks:
        if x.low <= at <= x.high:
            parts.append(_line(x(at), y.begin, x(at), y.end, 'class="mark"'))
            parts.append(_text(x(at) + 4, y.end + 11, word, "start", ' font-size="11"'))
    for i, one in enumerate(series):
        colour = GREY if one.dashed else PALETTE[i % len(PALETTE)]
        points = [
            (x(a), y(b)) if x.shows(a) and y.shows(b) and b is not None else None
            for a, b in zip(one.x, one.y, strict=True)
        ]
        if one.dots:
            r = 3.5 if len(points) <= 32 else 2.0
            parts += [f'<circle cx="{_px(p[0])}" cy="{_px(p[1])}" r="{r}" fill="{colour}"/>' for p in points if p]
        else:
            dash = ' stroke-dasharray="6 4"' if one.dashed else ""
            parts.append(f'<path d="{_path(points)}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>')
        top = TOP + 8 + i * LEGEND_LINE
        mark = f'stroke="{colour}" stroke-width="{6 if one.dots else 2.5}"' + (
            ' stroke-dasharray="6 4"' if one.dashed else ""
        )
        start = width - RIGHT + 14
        parts.append(_line(start + (6 if one.dots else 0), top, start + (12 if one.dots else 18), top, mark))
        parts.append(_text(start + 24, top + 4, one.name, "start"))
    return _document(width, max(height, TOP + 20 + len(series) * LEGEND_LINE), title, parts)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Return a path's data; None begins a new piece."""
    data, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        data.append(f"{pen}{_px(point[0])} {_px(point[1])}")
        pen = "L"
    return "".join(data)


def estimates(
    title: str,
    rows: Sequence[tuple[str, float | None, float | None]],
    x_axis: Axis,
    mark: tuple[float, str] | None = None,
    width: float = 860,
) -> str:
    """Return a plot of estimates, a row each: name, value, half width of its interval. mark: a vertical line."""
    left = LEFT + 100.0
    height = TOP + 26 * len(rows) + BOTTOM + 14
    ends = [v for _, value, half in rows if value is not None for v in (value - (half or 0), value + (half or 0))]
    x = _scale(x_axis, [*ends, *([mark[0]] if mark else [])], left, width - 60)
    y = _Scale(0, len(rows), False, height - BOTTOM, TOP + 14)
    parts = _axes(x, y, x_axis.title, "")
    if mark:
        parts.append(_line(x(mark[0]), y.begin, x(mark[0]), y.end, 'class="mark"'))
        parts.append(_text(x(mark[0]), y.end - 3, mark[1], more=' font-size="11"'))
    for i, (name, value, half) in enumerate(rows):
        middle = y(len(rows) - i - 0.5)
        parts.append(_text(left - 10, middle + 4, name, "end"))
        if not x.shows(value) or value is None:
            continue
        colour = PALETTE[i % len(PALETTE)]
        if half:
            low = max(value - half, x.low)
            parts.append(_line(x(low), middle, x(value + half), middle, f'stroke="{colour}" stroke-width="2.5"'))
        parts.append(f'<circle cx="{_px(x(value))}" cy="{_px(middle)}" r="4.5" fill="{colour}"/>')
        parts.append(
            _text(x(value + (half or 0)) + 9, middle + 4, f"{value:#.3g}".rstrip("."), "start", ' font-size="11"')
        )
    return _document(width, height, title, parts)
