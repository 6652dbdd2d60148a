"""The compiled round under the sanitizers, by both compilers."""

import pytest

from tests.c_build import ASAN_UBSAN, build_c, has_compiler, run_c


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_random_rounds_keep_their_bounds_and_their_work(cc):
    if not has_compiler(cc):
        pytest.skip(f"{cc} is not installed")
    program = build_c("rounds", ["tests/auction/rounds.c", "dataplane/auction/rounds.c"], [*ASAN_UBSAN, "-lm"], cc=cc)
    done = run_c(program)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
