"""The core in C programs: workers that race, garbage in the segment, the same choices under every compiler."""

import pytest

from tests.c_build import ASAN_UBSAN, ROOT, SEGMENT_SOURCES, TSAN, build_c, has_compiler, run_c

CORE_SOURCES = sorted((ROOT / "dataplane" / "core").glob("*.c"))
FLAGS = ("-ffp-contract=off", "-lm")


def run(name, sanitizer, *arguments, cc="gcc"):
    program = build_c(name, [f"tests/core/{name}.c", *SEGMENT_SOURCES, *CORE_SOURCES], (*sanitizer, *FLAGS), cc)
    done = run_c(program, *arguments, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("workers", "cycles"), [(1, 20_000), (2, 20_000), (4, 10_000)])
def test_workers_neither_race_nor_lose_a_flow(workers, cycles):
    assert f"{workers} workers" in run("workers", TSAN, workers, cycles)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_garbage_in_the_segment_does_no_harm(seed):
    printed = run("garbage", ASAN_UBSAN, seed, 20_000)
    _, decided, taken, refused = (int(part.split()[0]) for part in printed.split(","))
    assert min(decided, taken, refused) > 1000, printed


@pytest.mark.skipif(not has_compiler("clang"), reason="clang is not installed")
def test_the_core_is_clean_under_clang_as_well():
    run("garbage", ASAN_UBSAN, 4, 2_000, cc="clang")


def test_the_choices_are_the_same_under_every_compiler_and_scan():
    digests = set()
    for cc in filter(has_compiler, ("gcc", "clang")):
        for level in ("-O0", "-O3"):
            sources = ["tests/core/choices.c", *SEGMENT_SOURCES, *CORE_SOURCES]
            program = build_c("choices", sources, (level, *FLAGS), cc)
            for arguments in ((), ("portable",)):
                done = run_c(program, *arguments)
                assert done.returncode == 0
                digests.add(done.stdout)
    assert len(digests) == 1
