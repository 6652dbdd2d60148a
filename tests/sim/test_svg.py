"""Plots: well-formed, the same for the same data, and every value where it belongs."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.simulation import svg

NS = "{http://www.w3.org/2000/svg}"
values = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(math.nan), st.just(0.0), st.floats(1e-9, 1e-3))


@given(st.lists(values, min_size=1, max_size=20), st.booleans(), st.booleans(), st.booleans())
def test_any_values_make_well_formed_plots_without_nan(y, x_log, y_log, dots):
    series = [svg.Series("<a> & b", [float(i + 1) for i in range(len(y))], y, dots=dots)]
    text = svg.lines("t < u", series, svg.Axis("x", log=x_log), svg.Axis("y", log=y_log), [(2.0, "<mark>")])
    ElementTree.fromstring(text)
    assert "nan" not in text
    assert "inf" not in text


@given(st.lists(st.tuples(values, st.one_of(st.none(), st.floats(0, 10))), min_size=1, max_size=8), st.booleans())
def test_any_estimates_make_well_formed_plots(rows, log):
    text = svg.estimates("t", [(f"p{i}", v, h) for i, (v, h) in enumerate(rows)], svg.Axis("x", log=log), (3.0, "ref"))
    ElementTree.fromstring(text)
    assert "nan" not in text


def test_points_lie_where_the_axes_say():
    series = svg.Series("a", [0.0, 10.0], [0.0, 100.0])
    text = svg.lines(
        "t", [series], svg.Axis("x", low=0, high=10), svg.Axis("y", low=0, high=100), width=600, height=300
    )
    (path,) = (p.get("d") for p in ElementTree.fromstring(text).iter(f"{NS}path"))
    assert path == f"M{svg.LEFT} {300 - svg.BOTTOM}L{600 - svg.RIGHT} {svg.TOP}"


def test_a_gap_begins_a_new_piece():
    text = svg.lines("t", [svg.Series("a", [1, 2, 3, 4, 5], [1, 2, None, 4, 5])], svg.Axis("x"), svg.Axis("y"))
    assert re.search(r'd="M[^ML]+L[^ML]+M[^ML]+L[^ML]+"', text)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 23.0), (0.17, 0.19), (1e3, 9e6), (-5.0, 5.0)])
def test_ticks_are_round_and_a_handful(low, high):
    scale = svg._scale(svg.Axis("x"), [low, high], 0, 100)
    assert 3 <= len(scale.ticks) <= 12
    assert scale.low <= low
    assert scale.high >= high
    step = scale.ticks[1] - scale.ticks[0]
    assert round(step / 10 ** math.floor(math.log10(step)), 6) in (1, 2, 2.5, 5, 10)


@pytest.mark.parametrize(("low", "high"), [(1, 10), (0.001, 1), (3, 4), (2e-5, 7e3)])
def test_logarithmic_ticks_are_within(low, high):
    ticks = svg._scale(svg.Axis("x", log=True), [low, high], 0, 100).ticks
    assert 2 <= len(ticks) <= 12
    assert all(low * 0.99 <= t <= high * 1.01 for t in ticks)
