"""The ledger on a real disk: files that follow each other in one chain, and a disk that is full."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.auction.ledger import Ledger, LedgerError, records, verify
from controlplane.auction.ledger_verify import head_path
from controlplane.cli import main

# --- rotation ---------------------------------------------------------------------------------------------------------


def written(path: Path, records: int, keep: int) -> Path:
    """Write a ledger in files of 4 KB; return its path."""
    with Ledger(path, max_bytes=4096, keep=keep) as ledger:
        for i in range(records):
            ledger.append("round", round=i)
            ledger.flush()
    return path


@pytest.fixture
def rotated(tmp_path: Path) -> Path:
    return written(tmp_path / "l", records=120, keep=2)


def test_rotated_files_chain_on_and_the_oldest_are_dropped(rotated: Path) -> None:
    files = sorted(file.name for file in rotated.parent.iterdir())
    assert len(files) == 4  # two older, the present one, its head
    assert all(file.stat().st_size < 4096 + 600 for file in rotated.parent.iterdir())
    verdict = verify(rotated)
    assert verdict.ok
    assert "were rotated away" in verdict.notes[0]
    for older in rotated.parent.glob("l.[0-9]*"):
        assert verify(older).ok


def test_a_change_to_an_older_file_is_found(rotated: Path) -> None:
    older = sorted(rotated.parent.glob("l.[0-9]*"))
    data = older[1].read_bytes()
    lines = data.splitlines(keepends=True)
    for changed in (data[:-1], data[:-300], data.replace(b"round", b"rOund", 1), b"".join(lines[1:]), b""):
        older[1].write_bytes(changed)
        verdict = verify(rotated)
        assert not verdict.ok
        assert str(older[1]) in verdict.file or str(rotated) in verdict.file
    older[1].unlink()
    assert "is missing" in verify(rotated).why


def test_a_rotated_ledger_is_continued(rotated: Path) -> None:
    with Ledger(rotated, max_bytes=4096, keep=2) as ledger:
        for i in range(60):
            ledger.append("more", i=i)
            ledger.flush()
    assert verify(rotated).ok
    assert len(list(rotated.parent.glob("l.[0-9]*"))) == 2


def test_killed_between_two_files_it_goes_on_in_the_second(rotated: Path) -> None:
    # As after the rename: the present file is the youngest of the older ones, and there is none of its name.
    with Ledger(rotated, clock=lambda: 0.0) as ledger:
        before = ledger.records
    older = max(int(file.suffix[1:]) for file in rotated.parent.glob("l.[0-9]*"))
    rotated.rename(rotated.with_name(f"l.{older + 1}"))
    with Ledger(rotated, max_bytes=4096, keep=3) as ledger:
        ledger.append("again")
        assert ledger.records > before
    verdict = verify(rotated)
    assert verdict.ok
    assert verdict.kinds["again"] == 1


def test_files_of_an_earlier_chain_are_left_alone(rotated: Path) -> None:
    older = set(rotated.parent.glob("l.[0-9]*"))
    rotated.unlink()
    head_path(rotated).unlink()
    with Ledger(rotated, max_bytes=4096, keep=1) as ledger:
        for i in range(120):
            ledger.append("new", i=i)
            ledger.flush()
    assert verify(rotated).ok
    assert older < set(rotated.parent.glob("l.[0-9]*"))


def test_an_anchor_that_was_rotated_away_is_no_accusation(rotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    oldest = min(rotated.parent.glob("l.[0-9]*"), key=lambda file: int(file.suffix[1:]))
    first = next(records(oldest))
    gone = "ab" * 32  # as that of any record of a file that is not there any more
    verdict = verify(rotated, gone)
    assert (verdict.ok, verdict.unconfirmed, verdict.index) == (False, True, None)
    assert verdict.file == str(rotated)
    assert verdict.why.startswith(f"no record from {first.index} on has the hash {gone}: it can no longer be checked")
    assert f"records 0 to {first.index - 1}, which were rotated away" in verdict.why
    assert main(["auction", "verify", str(rotated), "--anchor", gone]) == 3
    assert "can no longer be checked" in capsys.readouterr().out
    # Something that is wrong with what is there is still said before that.
    rotated.write_bytes(rotated.read_bytes().replace(b"round", b"rOund", 1))
    verdict = verify(rotated, gone)
    assert (verdict.ok, verdict.unconfirmed) == (False, False)
    assert main(["auction", "verify", str(rotated), "--anchor", gone]) == 1


def test_the_last_record_that_was_rotated_away_serves_as_an_anchor(rotated: Path) -> None:
    oldest = min(rotated.parent.glob("l.[0-9]*"), key=lambda file: int(file.suffix[1:]))
    first = next(records(oldest))
    assert first.index > 0
    assert verify(rotated, first.previous).ok


def test_an_anchor_may_be_in_upper_case(rotated: Path) -> None:
    noted = verify(rotated).head.upper()
    assert verify(rotated, noted).ok
    assert main(["auction", "verify", str(rotated), "--anchor", noted]) == 0


def test_an_anchor_that_a_whole_chain_does_not_have_is_an_accusation(tmp_path: Path) -> None:
    Ledger(tmp_path / "l").close()
    verdict = verify(tmp_path / "l", "ab" * 32)
    assert (verdict.ok, verdict.unconfirmed) == (False, False)
    assert "the chain was written anew" in verdict.why
    assert main(["auction", "verify", str(tmp_path / "l"), "--anchor", "ab" * 32]) == 1


def test_an_anchor_that_a_later_file_has_may_be_missing_from_an_older_one(tmp_path: Path) -> None:
    path = written(tmp_path / "l", records=60, keep=9)
    verdict = verify(path.with_name("l.1"), verify(path).head)
    assert not verdict.ok
    assert "a later file" in verdict.why


# --- a full disk ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As a full disk, for this process: a write beyond it fails, part of it done."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_on_a_full_disk_records_are_dropped_and_counted_and_said(tmp_path: Path) -> None:
    path = tmp_path / "l"
    ledger = Ledger(path, lossy=True)
    with files_no_larger_than(2000):
        for i in range(30):
            ledger.append("round", round=i)
            ledger.flush()
    written = [r.fields["round"] for r in records(path) if r.kind == "round"]
    assert written == list(range(len(written)))
    assert ledger.dropped == 30 - len(written) > 0
    assert "large" in ledger.error
    assert verify(path).ok
    ledger.append("round", round=30)
    ledger.close()
    assert verify(path).ok
    last = list(records(path))[-3:]
    assert [r.kind for r in last] == ["dropped", "round", "close"]
    assert last[0].fields["records"] == ledger.dropped


def test_a_disk_that_fills_up_while_rotating_disturbs_nobody(tmp_path: Path) -> None:
    path = tmp_path / "l"
    ledger = Ledger(path, lossy=True, max_bytes=4096, keep=2)
    offered = 0
    for size in (*range(3800, 5200, 60), 100, 10**7, 300, 10**7):
        with files_no_larger_than(size):
            for _ in range(5):
                ledger.append("round", round=offered)
                ledger.flush()
                offered += 1
        assert verify(path).ok, str(verify(path))
    ledger.close()
    assert verify(path).ok
    kept = [r for file in [*path.parent.glob("l.[0-9]*"), path] for r in records(file)]
    assert sum(r.fields["records"] for r in kept if r.kind == "dropped") <= ledger.dropped < offered


def test_without_lossy_a_full_disk_raises_and_the_chain_stays_whole(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.append("x", text="y" * 3000)
    with files_no_larger_than(1500), pytest.raises(OSError, match="large"):
        ledger.flush()
    ledger.close()
    assert verify(tmp_path / "l").kinds == {"open": 1, "dropped": 1, "close": 1}


def test_a_lossy_ledger_drops_what_it_cannot_write(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l", lossy=True) as ledger:
        assert ledger.append("x", value=object()) == -1
        assert ledger.dropped == 1
    assert verify(tmp_path / "l").kinds == {"open": 1, "dropped": 1, "close": 1}


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file"):
        Ledger(tmp_path / "no" / "l")


@pytest.mark.parametrize("options", [{"max_bytes": 10}, {"keep": -1}])
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Ledger(tmp_path / "l", **options)
