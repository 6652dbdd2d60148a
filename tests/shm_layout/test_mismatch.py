"""A segment that is not this layout's, or not whole, is refused by Python and C; both sides' values are named."""

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shm_layout.build_ffi import layout_hash
from shm_layout.layout import HEADER, LAYOUT_HASH
from shm_layout.segment import Segment, SegmentDeadError, SegmentError, SegmentInUseError, SegmentMismatchError
from tests.c_build import ROOT, SEGMENT_SOURCES, build_c, run_c
from tests.shm_layout.conftest import SMALL

ATTACH = "tests/shm_layout/attach.c"


def patch(name: str, field: str, value: int) -> int:
    """Overwrite a field of the header in /dev/shm; return what stood there."""
    dtype, offset = HEADER.fields[field][:2]  # type: ignore[index]
    with open(f"/dev/shm{name}", "r+b") as file:
        file.seek(offset)
        before = int.from_bytes(file.read(dtype.itemsize), "little")
        file.seek(offset)
        file.write(value.to_bytes(dtype.itemsize, "little"))
    return before


def attach_in_c(name: str) -> tuple[str, int, int]:
    """Let a C program attach; return the error's text, found and expected."""
    done = run_c(build_c("attach", [ATTACH, *SEGMENT_SOURCES]), name)
    text, found, expected = done.stdout.rstrip("\n").split("|")
    return text, int(found), int(expected)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("magic", 0x4B4E554A, "foreign file: the magic differs"),
        ("layout_version", 99, "the layout version differs"),
        ("layout_hash", 0x123456789ABCDEF0, "the layout hash differs"),
        ("header_bytes", 999, "the size differs"),
        ("size_bytes", 4096, "the size differs"),
        ("size_bytes", 1 << 40, "truncated"),
        ("off_stats", 1 << 60, "an offset or length is out of bounds"),
        ("ring_stride", 64, "an offset or length is out of bounds"),
        ("max_servers", 7, "an offset or length is out of bounds"),
        ("max_servers", 0, "an offset or length is out of bounds"),
        ("ring_slots", 1 << 31, "an offset or length is out of bounds"),
    ],
)
def test_a_header_that_differs_is_refused_with_both_values(segment: Segment, field: str, value: int, text: str) -> None:
    before = patch(segment.name, field, value)
    with pytest.raises(SegmentMismatchError, match=text) as refused:
        Segment.attach(segment.name)
    found, expected = refused.value.found, refused.value.expected
    assert found != expected
    assert attach_in_c(segment.name) == (text, found, expected)
    if not field.startswith(("size", "max", "ring_slots")):  # these are seen by what follows from them
        assert (found, expected) == (value, before)
    for number in (found, expected):
        assert re.search(rf"\b(?:{number}|{number:#018x})\b", str(refused.value))


def test_a_truncated_segment_is_refused(segment: Segment) -> None:
    with open(f"/dev/shm{segment.name}", "r+b") as file:
        file.truncate(segment.size_bytes - 1)
    with pytest.raises(SegmentMismatchError, match=f"truncated.*{segment.size_bytes - 1}.*{segment.size_bytes}"):
        Segment.attach(segment.name)
    assert attach_in_c(segment.name) == ("truncated", segment.size_bytes - 1, segment.size_bytes)


@pytest.mark.parametrize("size", [0, 1, 319])
def test_a_file_shorter_than_a_header_is_refused(name: str, size: int) -> None:
    Path(f"/dev/shm{name}").write_bytes(b"\x31" * size)
    with pytest.raises(SegmentMismatchError, match=f"truncated.*has {size}, .*expects 320"):
        Segment.attach(name)


def test_a_segment_that_grew_is_refused(segment: Segment) -> None:
    with open(f"/dev/shm{segment.name}", "ab") as file:
        file.write(b"more")
    with pytest.raises(SegmentMismatchError, match="the size differs") as refused:
        Segment.attach(segment.name)
    assert (refused.value.found, refused.value.expected) == (segment.size_bytes + 4, segment.size_bytes)


def test_a_foreign_file_is_refused(name: str) -> None:
    Path(f"/dev/shm{name}").write_bytes(b"%PDF-1.7" * 1000)
    with pytest.raises(SegmentMismatchError, match=r"foreign file.*0x37.*0x5649434b52455931"):
        Segment.attach(name)


def test_a_segment_from_before_the_last_boot_is_refused(segment: Segment) -> None:
    patch(segment.name, "owner_pid", 1)
    offset = HEADER.fields["boot_id"][1]  # type: ignore[index]
    with open(f"/dev/shm{segment.name}", "r+b") as file:
        file.seek(offset)
        file.write(bytes(range(16)))
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:16]
    with pytest.raises(SegmentDeadError, match=f"0x0001020304050607.*0x{boot_id}"):
        Segment.attach(segment.name)
    Segment.attach(segment.name, allow_dead=True).close()


def test_a_recycled_pid_is_not_the_owner(segment: Segment) -> None:
    before = patch(segment.name, "owner_start_ticks", 1)
    with pytest.raises(SegmentDeadError, match=f"tick 1, a process of its number at tick {before}"):
        Segment.attach(segment.name)
    assert attach_in_c(segment.name) == ("the owner is dead", 1, before)


def test_damaged_block_heads_are_refused(segment: Segment) -> None:
    header = segment.read_header()
    with open(f"/dev/shm{segment.name}", "r+b") as file:
        file.seek(int(header["off_directive"]) + 24)  # the first buffer's offset
        file.write(struct.pack("<Q", 1 << 50))
    with pytest.raises(SegmentMismatchError, match=str(1 << 50)):
        Segment.attach(segment.name)


# --- another layout ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def altered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package in which one field has another type (of the same size), its binding built anew."""
    root = tmp_path_factory.mktemp("altered")
    shutil.copytree(
        ROOT / "shm_layout", root / "shm_layout", ignore=shutil.ignore_patterns("_segment.*", "*.o", "__py*")
    )
    header = root / "shm_layout" / "segment.h"
    text = header.read_text()
    assert text.count("uint32_t status; ") == 1
    header.write_text(text.replace("uint32_t status; ", "int32_t  status; "))
    build = [sys.executable, "-m", "shm_layout.build_ffi"]
    subprocess.run(build, cwd=root, check=True, capture_output=True, timeout=100)
    return root


def in_altered(altered: Path, code: str, name: str) -> str:
    command = [sys.executable, "-c", "from shm_layout.segment import *; import sys\n" + code, name]
    done = subprocess.run(command, cwd=altered, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_python_with_one_field_altered_refuses_and_is_refused(altered: Path, segment: Segment, name: str) -> None:
    other_hash = layout_hash(altered / "shm_layout" / "segment.h")
    assert other_hash != LAYOUT_HASH == layout_hash()
    said = in_altered(
        altered, "try: Segment.attach(sys.argv[1])\nexcept SegmentMismatchError as e: print(e)", segment.name
    )
    assert "the layout hash differs" in said
    assert f"the segment has {LAYOUT_HASH:#018x}, this process expects {other_hash:#018x}" in said

    segment.unlink()
    in_altered(altered, f"Segment.create(sys.argv[1], Limits(), 'web', owner_pid={segment.owner_pid})", segment.name)
    with pytest.raises(SegmentMismatchError) as refused:
        Segment.attach(segment.name)
    assert (refused.value.found, refused.value.expected) == (other_hash, LAYOUT_HASH)
    with pytest.raises(SegmentInUseError):  # its owner lives: it is not taken for rubbish
        Segment.create(segment.name, SMALL, "web")


def test_c_with_one_field_altered_refuses(altered: Path, segment: Segment) -> None:
    folder = altered / "shm_layout"
    other_hash = layout_hash(folder / "segment.h")
    attach = altered / "attach.c"
    attach.write_text((ROOT / ATTACH).read_text().replace("shm_layout/", f"{folder}/"))
    sources = [attach, *(folder / source.name for source in SEGMENT_SOURCES)]
    program = build_c("attach_altered", sources, ["-ULAYOUT_HASH", f"-DLAYOUT_HASH={other_hash:#x}ULL"])
    text, found, expected = run_c(program, segment.name).stdout.rstrip("\n").split("|")
    assert (text, int(found), int(expected)) == ("the layout hash differs", LAYOUT_HASH, other_hash)


def test_comments_and_blanks_do_not_change_the_hash(tmp_path: Path) -> None:
    text = (ROOT / "shm_layout" / "segment.h").read_text()
    refolded: list[Callable[[str], str]] = [
        lambda t: t.replace("/* number of", "/* count of").replace("flows open now", "flows that are open"),
        lambda t: t.replace("    uint64_t heartbeat_ns;", "\tuint64_t\n  heartbeat_ns;"),
    ]
    for alter in refolded:
        assert alter(text) != text
        (tmp_path / "segment.h").write_text(alter(text))
        assert layout_hash(tmp_path / "segment.h") == LAYOUT_HASH


def test_c_code_without_a_layout_hash_does_not_compile() -> None:
    command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-fsyntax-only", "shm_layout/access.c"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "LAYOUT_HASH is not defined" in done.stderr


def test_a_segment_damaged_in_use_is_not_followed(segment: Segment) -> None:
    patch(segment.name, "off_words", 1 << 58)
    with pytest.raises(SegmentError, match="out of bounds"):
        segment.read_words()
