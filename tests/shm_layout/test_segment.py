"""Making, attaching, closing and removing segments; who owns one, and who controls it."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shm_layout.mapping import Mapping
from shm_layout.segment import (
    ControllerLockedError,
    ControllerSupersededError,
    DirectiveData,
    Limits,
    Segment,
    SegmentDeadError,
    SegmentError,
    SegmentInUseError,
    SegmentMissingError,
    SettingsData,
)
from tests.c_build import ROOT
from tests.shm_layout.conftest import SMALL


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from shm_layout.segment import *; import sys\n" + code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def leave_behind(name: str) -> int:
    """Let a process make the segment and die; return its pid."""
    made = python("Segment.create(sys.argv[1], Limits(), 'web'); print(__import__('os').getpid())", name)
    assert made.returncode == 0, made.stderr
    return int(made.stdout)


def test_an_attached_segment_has_what_the_creator_gave_it(segment: Segment) -> None:
    with Segment.attach(segment.name) as other:
        assert other.limits == SMALL
        assert other.service == "web"
        assert other.owner_pid == os.getpid()
        assert other.owner_alive()
        assert other.generation == segment.generation
        assert other.size_bytes == SMALL.size_bytes == os.stat(f"/dev/shm{segment.name}").st_size


def test_only_its_user_may_open_a_segment(segment: Segment, name: str) -> None:
    mode = os.stat(f"/dev/shm{segment.name}").st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_the_mode_does_not_depend_on_the_umask(name: str) -> None:
    before = os.umask(0)
    try:
        with Segment.create(name, SMALL, "web"):
            assert stat.S_IMODE(os.stat(f"/dev/shm{name}").st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_segment_is_gone_after_unlink_but_stays_mapped(segment: Segment) -> None:
    with Segment.attach(segment.name) as other:
        segment.unlink()
        assert not Path(f"/dev/shm{segment.name}").exists()
        assert other.read_controller()["epoch"] == 0
        with pytest.raises(SegmentMissingError, match="no such segment"):
            Segment.attach(segment.name)


def test_unlink_leaves_a_successor_of_the_same_name_alone(segment: Segment) -> None:
    segment.unlink()
    with Segment.create(segment.name, SMALL, "web") as successor:
        segment.unlink()
        assert Path(f"/dev/shm{segment.name}").exists()
        successor.unlink()


def test_a_closed_segment_says_so(segment: Segment) -> None:
    other = Segment.attach(segment.name)
    other.close()
    other.close()
    with pytest.raises(SegmentError, match="closed"):
        other.read_words()


def test_nothing_is_published_through_a_read_only_mapping(segment: Segment) -> None:
    with Segment.attach(segment.name) as other, pytest.raises(SegmentError, match="reading only"):
        other.publish_settings(SettingsData())


def test_closing_leaves_no_descriptor_behind(name: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Segment.create(name, SMALL, "web") as segment:
            Segment.attach(name).close()
            with pytest.raises(SegmentInUseError):
                Segment.create(name, SMALL, "web")
            segment.unlink()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_live_owners_segment_is_not_replaced(segment: Segment) -> None:
    with pytest.raises(SegmentInUseError, match=f"process {os.getpid()} owns it and is alive"):
        Segment.create(segment.name, SMALL, "web")
    assert segment.read_controller()["epoch"] == 0


def test_a_live_owners_segment_of_another_version_is_not_replaced(segment: Segment) -> None:
    with open(f"/dev/shm{segment.name}", "r+b") as file:
        file.seek(8)
        file.write(b"\x63")
    with pytest.raises(SegmentInUseError):
        Segment.create(segment.name, SMALL, "web")


def test_what_a_dead_owner_left_is_refused_and_made_anew(name: str) -> None:
    leave_behind(name)
    with pytest.raises(SegmentDeadError, match="the owner is dead"):
        Segment.attach(name)
    with Segment.attach(name, allow_dead=True) as left:
        assert left.service == "web"
        assert not left.owner_alive()
    with Segment.create(name, SMALL, "web") as made:
        assert made.owner_pid == os.getpid()
        with Segment.attach(name) as attached:
            assert attached.generation == made.generation


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\0" * 4096, b"garbage!" * 1000], ids=["empty", "short", "zero", "text"]
)
def test_garbage_under_the_name_is_made_anew(name: str, content: bytes) -> None:
    Path(f"/dev/shm{name}").write_bytes(content)
    with Segment.create(name, SMALL, "web") as made:
        assert made.owner_alive()
        Segment.attach(name).close()


def test_a_zombie_owns_nothing(name: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", "import sys, time\nfrom shm_layout.segment import *\n"
         "Segment.create(sys.argv[1], Limits(), 'web'); print('made', flush=True); time.sleep(60)", name],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"made\n"
    Segment.attach(name).close()
    owner.kill()
    # Not reaped yet: it stays in /proc as a zombie.
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and " Z " not in Path(f"/proc/{owner.pid}/stat").read_text():
        time.sleep(0.01)
    with pytest.raises(SegmentDeadError):
        Segment.attach(name)
    owner.communicate()


def test_of_many_that_replace_a_stale_segment_one_wins(name: str) -> None:
    leave_behind(name)
    code = (
        "try:\n    segment = Segment.create(sys.argv[1], Limits(), 'web')\nexcept SegmentInUseError:\n"
        "    print('refused', flush=True)\nelse:\n    print(segment.generation, flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", "from shm_layout.segment import *; import sys\n" + code, name]
    racers = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    said = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
    with Segment.attach(name) as attached:
        winners = [word for word in said if word != "refused"]
        assert winners == [str(attached.generation)]
    for racer in racers:
        racer.communicate()


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_servers=0),
        Limits(max_servers=4097),
        Limits(max_workers=65),
        Limits(ring_slots=100),
        Limits(journal_slots=32),
        Limits(reservoir_slots=5000),
        Limits(table_slots=1 << 21),
        Limits(max_servers=-1),
        Limits(max_workers=1 << 40),
    ],
)
def test_limits_out_of_range_are_refused(name: str, limits: Limits) -> None:
    with pytest.raises(SegmentError, match="limits out of range"):
        Segment.create(name, limits, "web")
    assert not Path(f"/dev/shm{name}").exists()


def test_a_service_name_that_does_not_fit_leaves_nothing_behind(name: str) -> None:
    with pytest.raises(SegmentError):
        Segment.create(name, SMALL, "w" * 64)
    assert not Path(f"/dev/shm{name}").exists()


def test_a_segment_may_be_made_for_another_process(name: str) -> None:
    with Segment.create(name, SMALL, "web", owner_pid=os.getppid()) as segment:
        assert segment.owner_pid == os.getppid()
        assert segment.owner_alive()
    with pytest.raises(SegmentError), Segment.create(name + "x", SMALL, "web", owner_pid=2**22 + 1):
        pass


def test_a_mapping_needs_no_numpy() -> None:
    done = python("", "")  # Segment itself does
    assert done.returncode == 0
    code = "import shm_layout.mapping, sys; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert issubclass(Segment, Mapping)


# --- the controller ---------------------------------------------------------------------------------------------------


def directive() -> DirectiveData:
    return DirectiveData(ids=[1], rule="wrr", weights=[1.0])


def test_a_second_controller_is_refused_and_told_who_the_first_is(segment: Segment) -> None:
    with Segment.attach(segment.name, writable=True) as first, Segment.attach(segment.name, writable=True) as second:
        assert first.begin_controller() == 1
        with pytest.raises(ControllerLockedError, match=rf"process {os.getpid()} is its controller \(epoch 1\)"):
            second.begin_controller()


def test_each_controller_gets_the_next_epoch(segment: Segment) -> None:
    for epoch in (1, 2, 3):
        with Segment.attach(segment.name, writable=True) as controller:
            assert controller.begin_controller() == epoch
            controller.publish_directive(directive())
            assert segment.read_directive().epoch == epoch


def test_a_controllers_lock_ends_with_its_process(segment: Segment) -> None:
    code = (
        "segment = Segment.attach(sys.argv[1], writable=True)\n"
        "segment.begin_controller(); print('ready', flush=True); sys.stdin.read()"
    )
    controller = subprocess.Popen(
        [sys.executable, "-c", "from shm_layout.segment import *; import sys\n" + code, segment.name],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert controller.stdout is not None
    assert controller.stdout.readline() == b"ready\n"
    with pytest.raises(ControllerLockedError, match=f"process {controller.pid} "):
        segment.begin_controller()
    controller.send_signal(signal.SIGKILL)
    controller.communicate()
    assert segment.begin_controller() == 2


def test_a_controller_that_was_taken_over_from_publishes_nothing_more(segment: Segment) -> None:
    with Segment.attach(segment.name, writable=True) as first, Segment.attach(segment.name, writable=True) as second:
        first.begin_controller()
        first.publish_directive(directive())
        assert second.begin_controller(takeover=True) == 2
        with pytest.raises(ControllerSupersededError, match="epoch 2 took over from 1"):
            first.publish_directive(directive())
        with pytest.raises(ControllerSupersededError):
            first.beat_controller(1)
        second.publish_directive(directive())
        assert segment.read_directive().epoch == 2


def test_beats_are_seen(segment: Segment) -> None:
    with Segment.attach(segment.name, writable=True) as controller:
        controller.begin_controller()
        for cycle_ns in (5, 9, 7):
            controller.beat_controller(cycle_ns, late=1, failed=2)
    seen = segment.read_controller()
    assert (seen["epoch"], seen["pid"], seen["cycles"]) == (1, os.getpid(), 3)
    assert (seen["cycle_last_ns"], seen["cycle_max_ns"], seen["late"], seen["failed"]) == (7, 9, 1, 2)
    assert seen["heartbeat_ns"] > 0


def test_a_directive_needs_an_epoch(segment: Segment) -> None:
    with pytest.raises(SegmentError, match="begin_controller"):
        segment.publish_directive(directive())
