"""Novelty: nothing where training was, everything far from it, and no jump in between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs
from controlplane.learned.manifest import Range, Ranges
from controlplane.learned.novelty import SMOOTH, Novelty, blend_of
from tests.learned.files import ranges

UNIT = Range(0.0, 0.5, -1.0, 1.0)


def inputs(servers: int = 8, rows: float = 0.0, whole: float = 0.0, column: str = "fct_mean") -> Inputs:
    """Return inputs of zeros, but for one column of every server and one of all."""
    x = np.zeros((1, servers, len(SERVER_COLUMNS)), dtype=np.float32)
    x[:, :, SERVER_COLUMNS.index(column)] = rows
    g = np.zeros((1, len(GLOBAL_COLUMNS)), dtype=np.float32)
    g[:, GLOBAL_COLUMNS.index("in_flight")] = whole
    return Inputs(x, g, np.ones((1, servers), dtype=bool))


def score(given: Inputs, balancers: int = 2, trained: Ranges | None = None) -> float:
    return Novelty(trained or ranges(UNIT, (4, 16), (1, 4))).update(given, balancers, 0.0)


def test_what_was_trained_is_not_novel() -> None:
    for value in (-1.0, 0.0, 1.0):
        assert score(inputs(rows=value, whole=value)) == 0.0
    assert blend_of(0.0) == 1.0


def test_the_training_inputs_themselves_are_hardly_novel() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_t(3, size=(4000, 8, len(SERVER_COLUMNS))).astype(np.float32)
    whole = rng.standard_t(3, size=(4000, len(GLOBAL_COLUMNS))).astype(np.float32)
    trained = Ranges.measure(rows.reshape(-1, len(SERVER_COLUMNS)), whole, (8, 8), (1, 4))
    novelty, scores = Novelty(trained), []
    for step in range(300):
        given = Inputs(rows[step : step + 1], whole[step : step + 1], np.ones((1, 8), dtype=bool))
        scores.append(novelty.update(given, 2, step * 0.2))
    assert max(scores) < 0.25, "the policy acts in full"


@given(st.floats(-9, 9), st.floats(-9, 9), st.floats(0, 0.01))
def test_the_score_goes_with_the_distance_without_a_jump(value: float, other: float, step: float) -> None:
    near, far = score(inputs(rows=value, whole=other)), score(inputs(rows=value + step, whole=other))
    assert 0.0 <= near <= 1.0
    assert abs(far - near) <= step / 2.0 + 1e-6  # ranges are two wide
    if value >= 1.0:
        assert far >= near - 1e-6


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_blend_falls_continuously_from_all_to_nothing(a: float, b: float) -> None:
    assert abs(blend_of(a) - blend_of(b)) <= 2.0 * abs(a - b) + 1e-9
    assert (blend_of(a) >= blend_of(b)) == (a <= b) or blend_of(a) == blend_of(b)
    assert (blend_of(0.2), blend_of(0.5), blend_of(0.8)) == (1.0, pytest.approx(0.5), 0.0)


def test_far_from_training_nothing_is_left_of_the_policy() -> None:
    assert score(inputs(rows=5.0)) == 1.0
    assert score(inputs(whole=-5.0)) == 1.0
    assert blend_of(1.0) == 0.0


def test_one_server_among_many_is_no_reason_to_give_up() -> None:
    given = inputs(servers=16)
    given.rows[0, 3] = 50.0
    assert score(given) == pytest.approx(1 / 16)


def test_servers_that_are_not_there_do_not_count() -> None:
    given = inputs(servers=8)
    given.rows[0, 4:] = 50.0
    given.active[0, 4:] = False
    assert score(given) == 0.0
    given.active[:] = False
    assert score(given) == 0.0


def test_more_servers_and_balancers_than_trained_count_by_their_ratio() -> None:
    assert score(inputs(16)) == 0.0
    four_times = score(inputs(64))
    assert four_times == pytest.approx(np.log(4) / np.log(64))
    assert blend_of(four_times) > 0.8
    assert score(inputs(2)) == pytest.approx(np.log(2) / np.log(64))
    assert score(inputs(8), balancers=6) == pytest.approx(np.log(1.5) / np.log(2))
    assert score(inputs(8), balancers=8) == 1.0


def test_one_balancer_and_several_are_strange_to_each_other() -> None:
    several = ranges(UNIT, (4, 16), (2, 8))
    assert score(inputs(), balancers=1, trained=several) == 1.0
    assert score(inputs(), balancers=2, trained=several) == 0.0
    assert score(inputs(), balancers=12, trained=several) == pytest.approx(np.log(1.5) / np.log(2))
    alone = ranges(UNIT, (4, 16), (1, 1))
    assert score(inputs(), balancers=1, trained=alone) == 0.0
    assert score(inputs(), balancers=2, trained=alone) == 1.0


def test_a_moment_counts_little_and_lasting_strangeness_all() -> None:
    novelty = Novelty(ranges(UNIT, (4, 16), (1, 4)))
    for step in range(100):
        novelty.update(inputs(), 2, step * 0.2)
    assert novelty.update(inputs(rows=50.0), 2, 20.0) < 0.05
    assert novelty.strangest == "fct_mean"
    for step in range(1, 150):
        novelty.update(inputs(rows=50.0), 2, 20.0 + step * 0.2)
    assert novelty.score > 1.0 - 2 * np.exp(-30.0 / SMOOTH)


def test_the_first_look_has_no_past_to_be_averaged_with() -> None:
    assert score(inputs(rows=50.0)) == 1.0
