"""Build small C test programs, with sanitizers or without, once per content.

`build_c("torn", ["tests/shm_layout/torn.c", *SEGMENT_SOURCES], TSAN)` returns the path of the program. It lies in
build/tests; its name carries a hash of every file that was read, the flags and the compiler, so that a second call with
nothing changed compiles nothing. Paths are relative to the repository's root. A program that does not compile raises
BuildError with the compiler's own text.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from shm_layout.build_ffi import SOURCES as SEGMENT_SOURCES
from shm_layout.build_ffi import layout_define

__all__ = ["ASAN_UBSAN", "SEGMENT_SOURCES", "TSAN", "BuildError", "build_c", "has_compiler", "run_c"]

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "tests"

BASE_FLAGS = (
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O2",
    "-g",
    "-fno-omit-frame-pointer",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-pthread",
)
TSAN = ("-fsanitize=thread",)
ASAN_UBSAN = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

# A sanitizer's finding ends the program with this status, which no test program uses for itself.
SANITIZER_STATUS = 66
_SANITIZER_ENV = {
    "ASAN_OPTIONS": f"exitcode={SANITIZER_STATUS}:detect_leaks=0",
    "TSAN_OPTIONS": f"exitcode={SANITIZER_STATUS}:halt_on_error=1",
    "UBSAN_OPTIONS": f"exitcode={SANITIZER_STATUS}:print_stacktrace=1",
}


class BuildError(Exception):
    """The compiler refused; the text is its own."""


def build_c(name: str, sources: Sequence[str | Path], flags: Sequence[str] = (), cc: str = "gcc") -> Path:
    """Compile sources into build/tests/<name>-<hash> and return its path.

    flags come after BASE_FLAGS and LAYOUT_HASH's definition, libraries (`-lm`) among them; they are part of the hash.
    """
    command = [cc, *BASE_FLAGS, layout_define(), f"-I{ROOT}"]
    paths = [str(ROOT / source) for source in sources]
    key = hashlib.blake2b(digest_size=8)
    key.update(repr((_version(cc), command, paths, list(flags))).encode())
    for path in _files_read([*command, *(flag for flag in flags if not flag.startswith("-l"))], paths):
        key.update(Path(path).read_bytes())
    program = OUTPUT / f"{name}-{key.hexdigest()}"
    if not program.exists():
        OUTPUT.mkdir(parents=True, exist_ok=True)
        # Linked under a private name first: two test processes may build the same program at once.
        partial = program.with_suffix(f".{os.getpid()}")
        _run([*command, "-o", str(partial), *paths, *flags])
        partial.replace(program)
    return program


def run_c(
    program: Path, *arguments: str | int, timeout: float = 60, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a built program to its end, its output captured as text; the sanitizers end it at their first finding."""
    return subprocess.run(
        [str(program), *map(str, arguments)],
        env={**os.environ, **_SANITIZER_ENV, **(env or {})},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


def has_compiler(cc: str) -> bool:
    """Is this compiler installed?"""
    return shutil.which(cc) is not None


def _files_read(command: list[str], paths: list[str]) -> list[str]:
    """Sources and the headers that they include, system headers left out: the compiler's own list."""
    rule = _run([*command, "-MM", *paths]).replace("\\\n", " ")
    names = {word for line in rule.splitlines() for word in line.split(":", 1)[-1].split()}
    return sorted(names)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


@cache
def _version(cc: str) -> str:
    return _run([cc, "--version"])
