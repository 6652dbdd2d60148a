"""The same seed gives the same bytes, whichever compiler built the simulator; and the sanitizers find nothing in it."""

from pathlib import Path

import pytest

from tests.c_build import ASAN_UBSAN, ROOT, SEGMENT_SOURCES, build_c, has_compiler, run_c

SOURCES: list[str | Path] = [
    "tests/sim/worlds.c",
    *SEGMENT_SOURCES,
    *(path for part in ("core", "sim") for path in sorted((ROOT / "dataplane" / part).glob("*.c"))),
]
EXACT = ("-ffp-contract=off", "-lm")


def output(cc: str = "gcc", *flags: str) -> str:
    if not has_compiler(cc):
        pytest.skip(f"no {cc} on this machine")
    done = run_c(build_c("worlds", SOURCES, (*flags, *EXACT), cc))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_runs_give_the_same_bytes():
    assert output() == output()
    assert len(output().splitlines()) == 12


def test_gcc_and_clang_give_the_same_bytes():
    assert output("gcc") == output("clang")


def test_the_optimiser_changes_no_byte():
    assert output("gcc") == output("gcc", "-O0")


def test_the_sanitizers_find_nothing():
    assert output("gcc", *ASAN_UBSAN) == output("gcc")
