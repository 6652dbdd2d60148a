"""Builds dataplane._dataplane: the balancing core and the engines around it, with what they use of the segment.

`python -m dataplane.build_ffi` builds in place and does nothing when nothing changed (-v shows the compiler);
setup.py names `ffibuilder`. Declarations are read from the headers' marked parts: there is no second list of them.
Without liburing's header the socket engine is built without io_uring and runs on epoll.
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
if str(ROOT) not in sys.path:  # setuptools runs this file by its path
    sys.path.insert(0, str(ROOT))

from shm_layout import build_ffi as shm  # noqa: E402

# Each part with its public headers.
PARTS = {
    "core": ["core.h", "scan.h", "drill.h"],
    "sim": ["sim.h", "vector.h"],
    "socket": ["engine.h"],
    "auction": ["rounds.h"],
}
PUBLIC = tuple(FOLDER / part / name for part, names in PARTS.items() for name in names)
# Same results under every compiler: no fused multiply-add. -Wno-*: what cffi itself generates is not clean of it.
COMPILE_FLAGS = (
    *("-O3", "-g1", "-std=c11", "-D_GNU_SOURCE", "-ffp-contract=off", "-pthread"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"),
)


def has_io_uring() -> bool:
    """Return whether the compiler finds liburing's header."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    command = [compiler, "-E", "-include", "liburing.h", "-x", "c", "/dev/null"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def sources() -> list[Path]:
    """Return the C files of the segment's functions, the core and the engines."""
    return [*shm.SOURCES, *(path for part in PARTS for path in sorted((FOLDER / part).glob("*.c")))]


def headers() -> list[Path]:
    """Return every header that the sources may include."""
    found = [*shm.FOLDER.glob("*.h"), *(path for part in PARTS for path in (FOLDER / part).glob("*.h"))]
    return sorted(found)


def cdef_source() -> str:
    """Return what cffi is told: structs, constants and prototypes of the public headers."""
    return shm.cdef_source() + "".join(shm.marked(path) for path in PUBLIC)


def make_ffi() -> FFI:
    """Return the builder of dataplane._dataplane; paths are relative to the repository's root, as setuptools wants."""
    uring = has_io_uring()
    ffi = FFI()
    ffi.cdef(cdef_source())
    includes = [shm.HEADERS[1], *PUBLIC]
    ffi.set_source(
        "dataplane._dataplane",
        "".join(f'#include "{path.relative_to(ROOT)}"\n' for path in includes),
        sources=[str(path.relative_to(ROOT)) for path in sources()],
        depends=[str(path.relative_to(ROOT)) for path in headers()],
        include_dirs=["."],
        libraries=["m", *(["uring"] if uring else [])],
        define_macros=[] if uring else [("NO_IO_URING", "1")],
        extra_compile_args=[*COMPILE_FLAGS, shm.layout_define()],
        extra_link_args=["-pthread"],
    )
    return ffi


def fingerprint() -> str:
    """Return a hash of all that the built module depends on."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((sys.version, sysconfig.get_config_var("EXT_SUFFIX"), COMPILE_FLAGS, has_io_uring())).encode())
    for path in (*headers(), *sources(), Path(shm.__file__), Path(__file__)):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def build(verbose: bool = False) -> bool:
    """Build the module beside this file unless it is up to date; return whether it was built."""
    stamp = ROOT / "build" / "dataplane.stamp"
    target = FOLDER / f"_dataplane{sysconfig.get_config_var('EXT_SUFFIX')}"
    stamp.parent.mkdir(exist_ok=True)
    with open(stamp.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one build at a time
        wanted = fingerprint()
        if target.exists() and stamp.exists() and stamp.read_text() == wanted:
            return False
        # In its own process: paths are relative to the root, and a build changes folder and arguments.
        command = [sys.executable, "-c", f"from dataplane.build_ffi import make_ffi; make_ffi().compile({verbose=})"]
        done = subprocess.run(command, cwd=ROOT, capture_output=not verbose, text=True, check=False)
        if done.returncode != 0:
            errors = re.sub(r"^(gcc|cc|clang) .*\n", "", done.stderr or "", flags=re.MULTILINE)
            raise RuntimeError(f"dataplane._dataplane does not build:\n{done.stdout or ''}{errors}")
        stamp.write_text(wanted)
    return True


ffibuilder = make_ffi()

if __name__ == "__main__":
    build(verbose="-v" in sys.argv)
