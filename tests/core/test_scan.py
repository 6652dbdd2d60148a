"""The scans of an auction give what sorting gives, on every implementation alike."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataplane._dataplane import ffi, lib

NONE = lib.KEY_NONE
SCANNERS = [lib.scanner_portable(), lib.scanner_best()]

keys = st.lists(st.one_of(st.integers(0, 3), st.just(NONE), st.integers(0, NONE)), min_size=1, max_size=100)


def padded(values: list[int]) -> tuple[object, int]:
    """Return the keys on a 64-byte boundary, filled up with KEY_NONE, and how many there are now."""
    n = -(-len(values) // lib.SCAN_BLOCK) * lib.SCAN_BLOCK
    memory = ffi.new("char[]", 4 * n + 64)
    start = int(ffi.cast("uintptr_t", memory))
    array = ffi.cast("int32_t *", start + -start % 64)
    for i in range(n):
        array[i] = values[i] if i < len(values) else NONE
    return (memory, array), n


@given(keys)
def test_the_two_least_are_the_first_two_in_order(values):
    (memory, array), n = padded(values)
    for scanner in SCANNERS:
        found = scanner.two_least(array, n)
        assert [found.least, found.second] == sorted([*values, NONE, NONE])[:2]
    assert memory


@given(keys, st.data())
def test_the_nth_holder_of_a_value_is_found_and_counted(values, data):
    (memory, array), n = padded(values)
    value = data.draw(st.sampled_from(values))
    holders = [i for i, v in enumerate(values) if v == value] if value != NONE else []
    for scanner in SCANNERS:
        if value != NONE:
            assert scanner.count(array, n, value) == len(holders)
            assert [scanner.find(array, n, value, k) for k in range(len(holders))] == holders
    assert memory


@given(st.lists(st.tuples(st.integers(-(2**28), 2**28), st.integers(0, 2**24)), min_size=1, max_size=100))
def test_a_turn_takes_each_step_and_finds_the_least(pairs):
    for scanner in SCANNERS:
        (keys, array), n = padded([key for key, _ in pairs])
        (steps, step), _ = padded([step for _, step in pairs])
        for i in range(len(pairs), n):
            step[i] = 0
        after = [key - step for key, step in pairs]
        assert scanner.turn(array, step, n) == min(after)
        assert [array[i] for i in range(n)] == after + [NONE] * (n - len(after))
        assert keys
        assert steps


def test_both_implementations_agree_on_long_arrays():
    rng = np.random.default_rng(1)
    for size in (1, 15, 16, 17, 1000, 4096):
        values = rng.integers(0, max(2, size // 3), size).tolist()
        (memory, array), n = padded(values)
        a, b = (scanner.two_least(array, n) for scanner in SCANNERS)
        assert (a.least, a.second) == (b.least, b.second)
        counts = [scanner.count(array, n, a.least) for scanner in SCANNERS]
        assert counts[0] == counts[1] == values.count(a.least)
        assert len({scanner.find(array, n, a.least, counts[0] - 1) for scanner in SCANNERS}) == 1
        assert memory
