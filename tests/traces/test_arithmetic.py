"""The generators' own functions are right, and use nothing that differs between machines."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.traces import arithmetic
from testbed.traces.arithmetic import Draws


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_the_logarithm_is_right_to_the_last_places(x):
    assert float(arithmetic.log(x)) == pytest.approx(math.log(x), rel=5e-16, abs=1e-18)


@given(st.floats(min_value=-690, max_value=690))
def test_the_exponential_is_right_to_the_last_places(x):
    assert float(arithmetic.exp(x)) == pytest.approx(math.exp(x), rel=1e-15)


@given(st.floats(min_value=-1000, max_value=1000))
def test_the_sine_is_right(turns):
    assert float(arithmetic.sine(turns)) == pytest.approx(math.sin(2 * math.pi * math.remainder(turns, 1)), abs=1e-15)


def test_bits_are_the_same_for_one_and_for_many():
    # A vectorised loop has other code for its remainder: it must not be another function.
    x = Draws(3, "x").uniform(1001) + 1e-9
    for function in (arithmetic.log, arithmetic.exp, arithmetic.sine):
        assert function(x).tolist() == [float(function(one)) for one in x]


def test_the_raw_words_are_numpys_promise():
    # PCG64 seeded by SeedSequence([7, 0, word of the purpose]): NEP 19 fixes these bits.
    assert Draws(7, "gaps").words(2).tolist() == [18020028913205679298, 2497732432993763999]
    assert Draws(7, "gaps").words(1) != Draws(7, "works").words(1)
    assert Draws(7, "gaps").words(1) != Draws(-7, "gaps").words(1)


def test_draws_have_their_means_and_spreads():
    draws = Draws(1, "test")
    normal, exponential = draws.normal(400_000), draws.exponential(400_000)
    assert abs(normal.mean()) < 0.01
    assert normal.std() == pytest.approx(1, abs=0.01)
    assert exponential.mean() == pytest.approx(1, abs=0.01)
    assert exponential.std() == pytest.approx(1, abs=0.01)
    assert np.quantile(exponential, 0.5) == pytest.approx(math.log(2), abs=0.01)
