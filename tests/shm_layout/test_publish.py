"""Blocks under fire: no reader ever gets a torn payload, and a side that is killed leaves the other working."""

import random
import resource
import signal
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shm_layout.layout import BLOCK, BLOCK_BUFFER, ffi, lib
from shm_layout.segment import Limits, Segment, SegmentEmptyError, SegmentError, SegmentReadError, SettingsData
from tests.c_build import ASAN_UBSAN, SEGMENT_SOURCES, TSAN, build_c, has_compiler, run_c

HAMMER = ["tests/shm_layout/hammer.c", *SEGMENT_SOURCES]
ROOMY = Limits(max_servers=32, max_workers=1, reservoir_slots=16, ring_slots=64, journal_slots=64, table_slots=97)


class Buffers:
    """A block's head and buffers as they lie in the segment, to look behind the functions or to damage them."""

    def __init__(self, segment: Segment, block: str) -> None:
        memory = np.frombuffer(segment.memory, dtype=np.uint8)
        offset = int(segment.read_header()[block])
        self.head = memory[offset : offset + BLOCK.itemsize].view(BLOCK)
        starts = [int(start) for start in self.head["off_buffer"][0]]
        self.buffers = [memory[start : start + BLOCK_BUFFER.itemsize].view(BLOCK_BUFFER) for start in starts]
        capacity = int(self.head["capacity_bytes"][0])
        self.payloads = [memory[start + BLOCK_BUFFER.itemsize :][:capacity] for start in starts]


def settings(version: int) -> SettingsData:
    return SettingsData(version=version)


RUNNING: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    while RUNNING:
        with RUNNING.pop() as process:
            process.kill()


def start(program: Path, mode: str, segment: Segment) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [str(program), mode, segment.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    RUNNING.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def stop(process: subprocess.Popen[str]) -> str:
    """Ask it to end; return what it said. It fails when it ever saw a torn payload."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    return out


def read_version(segment: Segment) -> int:
    """Read the block as raw words, as the hammer publishes them: all equal."""
    room = np.empty(513, dtype=np.uint64)
    epoch = ffi.new("uint64_t *")
    offset = int(segment.read_header()["off_settings"])
    length = lib.segment_read(segment.base, offset, ffi.from_buffer(room), room.nbytes, epoch)
    assert length > 0 or length == -lib.SEGMENT_ETORN, ffi.string(lib.segment_strerror(length))
    if length < 0:
        return -1
    assert (room[: length // 8] == epoch[0]).all()
    return int(epoch[0])


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_threads_never_see_a_torn_copy_nor_a_data_race(cc: str) -> None:
    if not has_compiler(cc):
        pytest.skip(f"{cc} is not installed")
    done = run_c(build_c("hammer", HAMMER, TSAN, cc), "threads", 2)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 1000


def test_threads_at_full_speed_never_see_a_torn_copy() -> None:
    done = run_c(build_c("hammer", HAMMER), "threads", 2)
    assert done.returncode == 0, done.stderr


def test_processes_never_see_a_torn_copy(name: str) -> None:
    program = build_c("hammer", HAMMER)
    with Segment.create(name, ROOMY, "web") as segment:
        writer, reader = start(program, "write", segment), start(program, "read", segment)
        seen = set()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            seen.add(read_version(segment))
        assert len(seen) > 100
        assert int(stop(reader).split()[0]) > 100
        stop(writer)


def test_a_publisher_killed_at_random_moments_leaves_readers_and_successors_working(name: str) -> None:
    program = build_c("hammer", HAMMER)
    moments = random.Random(7)
    with Segment.create(name, ROOMY, "web") as segment:
        reader, newest, odd = None, 0, 0
        for kills in range(400):
            if kills >= 40 and odd >= 3:
                break
            writer = start(program, "write", segment)
            reader = reader or start(program, "read", segment)
            time.sleep(moments.uniform(0, 0.01))
            writer.kill()
            writer.communicate()
            buffers = Buffers(segment, "off_settings")
            odd += any(int(buffer["sequence"][0]) % 2 for buffer in buffers.buffers)
            del buffers
            found = read_version(segment)  # nobody writes: it must succeed at once
            assert found >= newest > -1
            newest = found
        assert odd >= 3, "hardly a writer was killed inside a publication: the test proves nothing"
        assert reader is not None
        assert int(stop(reader).split()[0]) > 0
        segment.publish_settings(settings(99))
        assert segment.read_settings().head["version"] == 99


def test_readers_killed_at_random_moments_leave_the_publisher_working(name: str) -> None:
    program = build_c("hammer", HAMMER)
    moments = random.Random(8)
    with Segment.create(name, ROOMY, "web") as segment:
        writer = start(program, "write", segment)
        for _ in range(30):
            reader = start(program, "read", segment)
            before = segment.settings_published
            time.sleep(moments.uniform(0, 0.01))
            reader.kill()
            reader.communicate()
            deadline = time.monotonic() + 10
            while segment.settings_published <= before + 1:
                assert time.monotonic() < deadline, "the publisher stopped"
        stop(writer)


def test_a_publisher_may_die_at_any_instruction() -> None:
    done = run_c(build_c("every_instruction", ["tests/shm_layout/every_instruction.c", *SEGMENT_SOURCES]))
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


# --- one block, looked at closely -------------------------------------------------------------------------------------


def test_nothing_published_is_told_apart_from_nothing_there(segment: Segment) -> None:
    with pytest.raises(SegmentEmptyError, match="nothing was published yet"):
        segment.read_settings()
    assert segment.settings_published == 0


def test_the_newest_payload_is_read(segment: Segment) -> None:
    for version in range(1, 8):
        segment.publish_settings(settings(version), epoch=version * 10)
        assert segment.settings_published == version
        read = segment.read_settings()
        assert (int(read.head["version"]), read.epoch) == (version, version * 10)


def test_the_checksum_is_zlibs(segment: Segment) -> None:
    for n in range(5):
        payload = SettingsData(version=n, maxconn=n * 77).encode()
        segment.publish_settings(payload)
        buffers = Buffers(segment, "off_settings")
        latest = int(buffers.head["latest"][0])
        assert int(buffers.buffers[latest]["crc"][0]) == zlib.crc32(payload)
        assert buffers.payloads[latest][: len(payload)].tobytes() == payload
        del buffers


def test_a_flipped_bit_is_noticed(segment: Segment) -> None:
    segment.publish_settings(settings(1))
    buffers = Buffers(segment, "off_settings")
    buffers.payloads[int(buffers.head["latest"][0])][100] ^= 4
    with pytest.raises(SegmentReadError, match="checksum"):
        segment.read_settings()
    segment.publish_settings(settings(2))
    assert segment.read_settings().head["version"] == 2


def test_a_buffer_left_odd_is_written_anew(segment: Segment) -> None:
    segment.publish_settings(settings(1))
    buffers = Buffers(segment, "off_settings")
    other = 1 - int(buffers.head["latest"][0])
    buffers.buffers[other]["sequence"] = 41
    buffers.buffers[other]["length_bytes"] = 1 << 60
    assert segment.read_settings().head["version"] == 1
    segment.publish_settings(settings(2))
    assert segment.read_settings().head["version"] == 2
    sequence = int(buffers.buffers[other]["sequence"][0])
    assert sequence % 2 == 0
    assert sequence > 41


def test_a_reader_gives_up_on_a_buffer_that_stays_odd(segment: Segment) -> None:
    segment.publish_settings(settings(1))
    buffers = Buffers(segment, "off_settings")
    buffers.buffers[int(buffers.head["latest"][0])]["sequence"] = 3
    with pytest.raises(SegmentReadError, match="no consistent copy"):
        segment.read_settings()


@pytest.mark.parametrize(("field", "value"), [("length_bytes", 1 << 62), ("length_bytes", 4), ("length_bytes", 0)])
def test_a_damaged_length_is_refused(segment: Segment, field: str, value: int) -> None:
    segment.publish_settings(settings(1))
    buffers = Buffers(segment, "off_settings")
    buffers.buffers[int(buffers.head["latest"][0])][field] = value
    with pytest.raises(SegmentReadError, match="out of bounds"):
        segment.read_settings()


def test_damaged_block_heads_are_not_followed(segment: Segment) -> None:
    segment.publish_settings(settings(1))
    buffers = Buffers(segment, "off_settings")
    buffers.head["off_buffer"], buffers.head["capacity_bytes"] = 1 << 60, 1 << 60
    assert segment.read_settings().head["version"] == 1
    buffers.head["latest"] = 2**64 - 1
    with pytest.raises(SegmentReadError):
        segment.read_settings()
    segment.publish_settings(settings(2))
    assert segment.read_settings().head["version"] == 2


def test_a_payload_longer_than_the_block_is_refused(segment: Segment) -> None:
    offset = int(segment.read_header()["off_settings"])
    payload = np.zeros(1 << 16, dtype=np.uint64)
    data = ffi.from_buffer(payload)
    for length in (0, 4, 1 << 19):
        assert lib.segment_publish(segment.base, offset, data, length, 1) == -lib.SEGMENT_EBOUNDS
    assert lib.segment_publish(segment.base, offset + 64, data, 64, 1) == -lib.SEGMENT_EBOUNDS
    assert lib.segment_publish(segment.base, offset, data + 4, 64, 1) < 0
    assert segment.settings_published == 0


def test_random_bytes_never_crash_a_reader() -> None:
    program = build_c("check_fuzz", ["tests/shm_layout/check_fuzz.c", *SEGMENT_SOURCES], ASAN_UBSAN)
    for seed in (1, random.randrange(2**32)):
        done = run_c(program, seed, 100_000)
        assert done.returncode == 0, f"seed {seed}: {done.stderr}"
        passed, refused = (int(word) for word in done.stdout.replace(",", "").split()[0:3:2])
        assert passed > 1000
        assert refused > 1000


def test_shared_memory_that_cannot_be_had_is_an_error_now_and_not_a_crash_later(name: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOMY.size_bytes - 1, before[1]))
    try:
        with pytest.raises(SegmentError, match=f"{ROOMY.size_bytes} bytes of shared memory"):
            Segment.create(name, ROOMY, "web")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not Path(f"/dev/shm{name}").exists()
