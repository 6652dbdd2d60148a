"""Builds shm_layout._segment, the cffi face of segment.h and access.h (API mode: the compiler checks it all).

`python -m shm_layout.build_ffi` builds in place and does nothing when nothing changed; setup.py names `ffibuilder`;
`python -m shm_layout.build_ffi --define` prints the compiler flag that access.c needs.
The other binding (dataplane) takes cdef_source() and layout_define() from here: there is one layout and one hash.
"""

import fcntl
import hashlib
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from cffi import FFI  # type: ignore[import-untyped]

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
HEADERS = (FOLDER / "segment.h", FOLDER / "access.h")
INTERNAL = tuple(FOLDER / name for name in ("words.h", "layout.h", "crc.h"))
SOURCES = tuple(FOLDER / name for name in ("access.c", "blocks.c", "rows.c", "check.c", "crc.c"))
# -Wno-*: what cffi itself generates is not clean of these.
COMPILE_FLAGS = ("-O2", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")

# Outside the marks of segment.h, because they have bodies there; cffi wraps them as functions.
INLINE_FUNCTIONS = """
uint32_t curve_bin(uint32_t n);
uint32_t curve_bin_low(uint32_t bin);
uint32_t histogram_bucket(uint64_t value_ns);
uint64_t histogram_bucket_low(uint32_t bucket);
"""


def marked(header: Path) -> str:
    """Return the text of a header between its cdef marks."""
    found = re.search(r"/\* cdef:begin.*?\*/\n(.*?)/\* cdef:end \*/", header.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{header}: no cdef:begin … cdef:end")
    return found.group(1)


def cdef_source() -> str:
    """Return what cffi is told of both headers: structs, constants, prototypes."""
    return "".join(marked(header) for header in HEADERS) + INLINE_FUNCTIONS


def layout_hash(header: Path = HEADERS[0]) -> int:
    """Return the 64-bit hash of the layout: of the marked text, comments removed and white space folded."""
    text = re.sub(r"/\*.*?\*/", " ", marked(header), flags=re.DOTALL)
    folded = " ".join(text.split())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest(), "big")


def layout_define(header: Path = HEADERS[0]) -> str:
    """Return the compiler flag that tells the C code its layout hash."""
    return f"-DLAYOUT_HASH=0x{layout_hash(header):016x}ULL"


def make_ffi() -> FFI:
    """Return the builder of shm_layout._segment; paths are relative to the repository's root, as setuptools wants."""
    ffi = FFI()
    ffi.cdef(cdef_source())
    ffi.set_source(
        "shm_layout._segment",
        '#include "shm_layout/access.h"\n',
        sources=[str(path.relative_to(ROOT)) for path in SOURCES],
        depends=[str(path.relative_to(ROOT)) for path in (*HEADERS, *INTERNAL)],
        include_dirs=["."],
        extra_compile_args=[*COMPILE_FLAGS, layout_define()],
    )
    return ffi


ffibuilder = make_ffi()


def fingerprint() -> str:
    """Return a hash of all that the built module depends on."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((sys.version, sysconfig.get_config_var("EXT_SUFFIX"), COMPILE_FLAGS)).encode())
    for path in (*HEADERS, *SOURCES, *sorted(FOLDER.glob("*.h")), Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build(verbose: bool = False) -> bool:
    """Build the module beside this file unless it is up to date; return whether it was built."""
    stamp = ROOT / "build" / "shm_layout.stamp"
    target = FOLDER / "_segment.abi3.so"  # the name that pip gives it: one file, however it was built
    stamp.parent.mkdir(exist_ok=True)
    with open(stamp.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one build at a time
        wanted = fingerprint()
        if target.exists() and stamp.exists() and stamp.read_text() == wanted:
            return False
        target.unlink(missing_ok=True)  # else its age alone would decide
        # In its own process: paths are relative to the root, and a build changes folder and arguments.
        compile_it = f"ffibuilder.compile({verbose=}, target={target.name!r})"
        command = [sys.executable, "-c", f"from shm_layout.build_ffi import ffibuilder; {compile_it}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=not verbose, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"shm_layout._segment does not build:\n{done.stdout or ''}{done.stderr or ''}")
        (FOLDER / f"_segment{sysconfig.get_config_var('EXT_SUFFIX')}").unlink(missing_ok=True)  # would be taken first
        stamp.write_text(wanted)
    return True


if __name__ == "__main__":
    if "--define" in sys.argv:
        print(layout_define())
    else:
        build(verbose="-v" in sys.argv)
