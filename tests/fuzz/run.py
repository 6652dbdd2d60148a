"""Fuzz every parser for a bounded time: `python tests/fuzz/run.py --seconds 60 [target …]`.

clang's libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer does it; where clang is not installed, only the
seeds are replayed, built by gcc with the same sanitizers. What was learned stays in build/fuzz/<target>; an input that
fails is written to build/fuzz as crash-… and its path is printed. Exit status 1 when a target fails.
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.c_build import ASAN_UBSAN, ROOT, BuildError, build_c, has_compiler, run_c
from tests.fuzz.seeds import write_dictionary, write_seeds
from tests.socket.http_c import SOURCES

FOLDER = ROOT / "build" / "fuzz"
TARGETS = ("fuzz_request", "fuzz_response", "fuzz_chunked")


def build_replay(target: str, cc: str = "gcc") -> Path:
    """The target as a plain program over files."""
    return build_c(f"{target}-replay", [f"tests/fuzz/{target}.c", "tests/fuzz/replay.c", *SOURCES], ASAN_UBSAN, cc)


def build_fuzzer(target: str) -> Path:
    flags = ("-fsanitize=fuzzer", *ASAN_UBSAN)
    return build_c(target, [f"tests/fuzz/{target}.c", *SOURCES], flags, "clang")


def fuzz(target: str, seconds: int, seeds: list[Path]) -> int:
    learned = FOLDER / target / "learned"
    learned.mkdir(exist_ok=True)
    dictionary = FOLDER / "http.dict"
    write_dictionary(dictionary)
    command = [
        str(build_fuzzer(target)),
        f"-max_total_time={seconds}",
        "-max_len=20000",
        "-len_control=50",
        "-timeout=5",
        "-print_final_stats=1",
        f"-dict={dictionary}",
        f"-artifact_prefix={FOLDER}/",
        str(learned),
        str(seeds[0].parent),
    ]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode != 0:
        print(done.stderr[-4000:])
        return 1
    figures = dict(line.split(": ", 1) for line in done.stderr.splitlines() if line.startswith("stat::"))
    executed = figures.get("stat::number_of_executed_units", "?").strip()
    print(f"{target}: {executed} inputs in {seconds} s, nothing found")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz every parser for a bounded time.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("target", nargs="*", metavar="target", help=f"{', '.join(TARGETS)} (all)")
    arguments = parser.parse_args()
    if unknown := set(arguments.target) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    files = write_seeds(FOLDER)
    failed = 0
    for target in arguments.target or TARGETS:
        if has_compiler("clang"):
            try:
                failed += fuzz(target, arguments.seconds, files[target])
                continue
            except BuildError as error:
                print(f"clang does not build {target} (is libclang-rt installed?):\n{error}")
        print(f"{target}: no libFuzzer without clang; replaying {len(files[target])} seeds only")
        done = run_c(build_replay(target), *map(str, files[target]))
        print(done.stderr or done.stdout, end="")
        failed += done.returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
