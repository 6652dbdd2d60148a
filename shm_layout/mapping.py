"""A mapped segment: made, attached, locked, closed, unlinked. Without numpy, which the data plane need not load.

    with Mapping.create("/vickrey.main.web", Limits(max_servers=64, max_workers=2), "web") as mapping: …
    with Mapping.attach("/vickrey.main.web", writable=True) as mapping: …

create() replaces what a dead owner left under the name, or anything else there that is no segment; a live owner's is
refused. attach() checks everything before anything is read. Errors: see errors.py.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import posix_ipc  # type: ignore[import-not-found]

from shm_layout.errors import (
    ControllerLockedError,
    SegmentDeadError,
    SegmentEmptyError,
    SegmentError,
    SegmentInUseError,
    SegmentMismatchError,
    SegmentMissingError,
    SegmentReadError,
)

try:
    from shm_layout._segment import ffi, lib
except ImportError as error:
    raise ImportError("shm_layout._segment is not built: run `python -m shm_layout.build_ffi`") from error

# How often create() makes or removes a segment of its name before it gives up.
_ATTEMPTS = 16
_HEXADECIMAL = {lib.SEGMENT_EMAGIC, lib.SEGMENT_EHASH, lib.SEGMENT_EBOOT}
_DEAD = {lib.SEGMENT_EOWNER, lib.SEGMENT_EBOOT}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a segment is sized by; ranges as in struct segment_limits."""

    max_servers: int = 64
    max_workers: int = 1
    reservoir_slots: int = 128
    ring_slots: int = 4096
    journal_slots: int = 4096
    table_slots: int = 65537

    @property
    def size_bytes(self) -> int:
        """Bytes that a segment of these limits takes; SegmentError when they are out of range."""
        size = int(lib.segment_size(self.as_c()))
        if size < 0:
            raise SegmentError(f"limits out of range: {self}")
        return size

    def as_c(self) -> Any:
        try:
            return ffi.new("struct segment_limits *", {name: getattr(self, name) for name in self.__slots__})
        except OverflowError as error:
            raise SegmentError(f"limits out of range: {self}") from error


def segment_name(instance: str, service: str) -> str:
    """Return the name of a service's segment."""
    return f"/vickrey.{instance}.{service}"


def now_ns() -> int:
    """CLOCK_MONOTONIC, nanoseconds: the clock of everything in a segment."""
    return int(lib.segment_now_ns())


def check_return(code: int, name: str) -> int:
    """Return a C function's result; raise what a negative one stands for, with the text that C gives it."""
    if code >= 0:
        return code
    message = f"{name}: {ffi.string(lib.segment_strerror(code)).decode()}"
    if -code == lib.SEGMENT_EEMPTY:
        raise SegmentEmptyError(message)
    if -code in (lib.SEGMENT_ETORN, lib.SEGMENT_ECRC, lib.SEGMENT_EBOUNDS, lib.SEGMENT_EVALUE):
        raise SegmentReadError(message)
    raise SegmentError(message)


class Mapping:
    """One segment, mapped into this process, made by create() or attach()."""

    def __init__(self, name: str, fd: int, memory: mmap.mmap, writable: bool) -> None:
        self.name = name
        self.writable = writable
        self._fd = fd
        self._memory = memory
        self._locked = False
        # The segment as cffi's functions take it: a char pointer that keeps the mapping alive until close().
        self._base = ffi.from_buffer(memory, require_writable=writable)
        header = ffi.cast("struct segment_header *", self._base)
        # A private copy: what is read later is bounded by what was checked now.
        self._header = ffi.new("struct segment_header *", header[0])
        self.inode = os.fstat(fd).st_ino

    # --- making and attaching -----------------------------------------------------------------------------------------

    @classmethod
    def create(cls, name: str, limits: Limits, service: str, *, owner_pid: int | None = None) -> Self:
        """Make the segment, owned by this process (or owner_pid), and map it writable.

        SegmentInUseError: a live process owns the name. SegmentError: limits out of range, no room in /dev/shm.
        """
        size = limits.size_bytes
        for _ in range(_ATTEMPTS):
            try:
                fd = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600).fd
            except posix_ipc.ExistentialError:
                _remove_stale(name)
                continue
            try:
                # Whoever finds the segment half made waits for this lock before he judges it.
                _lock_file(fd)
                memory = _allocate(fd, size, name)
                error = lib.segment_format(
                    ffi.from_buffer(memory), size, limits.as_c(), service.encode(), owner_pid or os.getpid(), now_ns()
                )
                _unlock_file(fd)
                check_return(error, name)
                if _is_named(fd, name):
                    return cls(name, fd, memory, writable=True)
            except BaseException:
                if _is_named(fd, name):
                    posix_ipc.unlink_shared_memory(name)
                os.close(fd)
                raise
            os.close(fd)  # taken for stale before it was locked: make another
        raise SegmentError(f"{name}: other processes keep making and removing it")

    @classmethod
    def attach(cls, name: str, *, writable: bool = False, allow_dead: bool = False) -> Self:
        """Map an existing segment after checking it.

        allow_dead: also when its owner is dead (for tools that look at what was left).
        SegmentMissingError, SegmentMismatchError (found and expected in the message), SegmentDeadError.
        """
        fd = _open(name)
        try:
            size = os.fstat(fd).st_size
            if size == 0:
                _refuse(lib.SEGMENT_ETRUNCATED, 0, ffi.sizeof("struct segment_header"), name)
            memory = mmap.mmap(fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
            mismatch = ffi.new("struct segment_mismatch *")
            error = -lib.segment_check(ffi.from_buffer(memory), size, mismatch)
            if error != 0 and not (allow_dead and error in _DEAD):
                _refuse(error, mismatch.found, mismatch.expected, name)
            return cls(name, fd, memory, writable)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Unmap. Locks of this mapping are released. May be called twice."""
        if self._fd < 0:
            return
        ffi.release(self._base)
        self._memory.close()
        os.close(self._fd)
        self._fd = -1
        self._locked = False

    def unlink(self) -> None:
        """Remove the name, if it still names this segment; processes that mapped it keep it."""
        if self._fd >= 0 and _is_named(self._fd, self.name):
            posix_ipc.unlink_shared_memory(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def base(self) -> Any:
        """The segment's start as a cffi char pointer; SegmentError after close()."""
        if self._fd < 0:
            raise SegmentError(f"{self.name}: closed")
        return self._base

    @property
    def address(self) -> int:
        """The segment's start as a number, for a binding of its own ffi; valid until close()."""
        return int(ffi.cast("uintptr_t", self.base))

    @property
    def memory(self) -> mmap.mmap:
        """The mapped memory itself: for the simulator's and the tests' writers; readers use Segment's methods."""
        self.base  # noqa: B018  closed: raises
        return self._memory

    @property
    def size_bytes(self) -> int:
        return int(self._header.size_bytes)

    @property
    def limits(self) -> Limits:
        return Limits(**{name: getattr(self._header, name) for name in Limits.__slots__})

    @property
    def service(self) -> str:
        return str(ffi.string(self._header.service).decode(errors="replace"))

    @property
    def generation(self) -> int:
        """Random; differs between two segments of one name."""
        return int(self._header.generation)

    @property
    def owner_pid(self) -> int:
        return int(self._header.owner_pid)

    def owner_alive(self) -> bool:
        """Is the process that made it still running?"""
        return bool(lib.segment_owner_alive(self.base))

    # --- the controller's lock ----------------------------------------------------------------------------------------

    def lock_controller(self) -> None:
        """Take the lock that only one controller holds; it ends with close() or with the process.

        ControllerLockedError names the holder.
        """
        self.base  # noqa: B018  closed: raises
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = ffi.new("struct controller *")
            lib.segment_read_controller(self.base, holder)
            message = f"{self.name}: process {holder.pid} is its controller (epoch {holder.epoch}), not {os.getpid()}"
            raise ControllerLockedError(message) from None
        self._locked = True


def _refuse(error: int, found: int, expected: int, name: str) -> None:
    """Raise what segment_check() found, with both sides' values."""
    text = ffi.string(lib.segment_strerror(-error)).decode()
    if error == lib.SEGMENT_EOWNER:
        detail = f"the segment's owner started at tick {found}, " + (
            f"a process of its number at tick {expected}" if expected else "no process of its number runs (0)"
        )
    else:
        style = "#018x" if error in _HEXADECIMAL else "d"
        detail = f"the segment has {found:{style}}, this process expects {expected:{style}}"
    kind = SegmentDeadError if error in _DEAD else SegmentMismatchError
    raise kind(f"{name}: {text}: {detail}", found, expected)


def _open(name: str) -> int:
    try:
        return int(posix_ipc.SharedMemory(name).fd)
    except posix_ipc.ExistentialError:
        raise SegmentMissingError(f"{name}: no such segment") from None
    except (posix_ipc.PermissionsError, PermissionError):
        raise SegmentError(f"{name}: permission denied: it belongs to another user") from None


def _is_named(fd: int, name: str) -> bool:
    """Is the object behind fd the one that the name leads to?"""
    try:
        other = _open(name)
    except SegmentError:
        return False
    try:
        return os.path.sameopenfile(fd, other)
    finally:
        os.close(other)


def _allocate(fd: int, size: int, name: str) -> mmap.mmap:
    try:
        os.fchmod(fd, 0o600)
        # Memory is taken now: a sparse object would kill its writers (SIGBUS) when /dev/shm fills up later.
        os.posix_fallocate(fd, 0, size)
        return mmap.mmap(fd, size)
    except OSError as error:
        raise SegmentError(f"{name}: {size} bytes of shared memory: {error.strerror}") from error


def _remove_stale(name: str) -> None:
    """Unlink what lies under the name unless a live process owns it, be it of another layout."""
    try:
        fd = _open(name)
    except SegmentMissingError:
        return
    try:
        _lock_file(fd)
        size = os.fstat(fd).st_size
        if size >= ffi.sizeof("struct segment_header"):
            with mmap.mmap(fd, size, prot=mmap.PROT_READ) as memory, ffi.from_buffer(memory) as base:
                foreign = lib.segment_check(base, size, ffi.NULL) == -lib.SEGMENT_EMAGIC
                if not foreign and lib.segment_owner_alive(base):
                    owner = ffi.cast("struct segment_header *", base).owner_pid
                    raise SegmentInUseError(
                        f"{name}: process {owner} owns it and is alive; this is process {os.getpid()}"
                    )
        if _is_named(fd, name):
            posix_ipc.unlink_shared_memory(name)
    finally:
        os.close(fd)


def _lock_file(fd: int) -> None:
    """Wait for the lock under which a segment is made or judged stale; it ends when fd is closed.

    An open file description lock: the controllers' flock is another one, and closing another descriptor of the file
    does not drop it, as it would a POSIX lock.
    """
    whole_file = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, whole_file)


def _unlock_file(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
