"""The ledger: any change to a file is found and said, crashes are repaired on record."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.auction.ledger import GENESIS, Ledger, LedgerError, records, verify

QUICK = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, n: int = 6, close: bool = True, **options: Any) -> bytes:
    """Write a ledger of n records between open and close; return its bytes."""
    ledger = Ledger(path, clock=lambda: 1.5, **options)
    for i in range(n):
        ledger.append("round", round=i, reserve=1.5 * i)
    if close:
        ledger.close()
    else:
        ledger.flush()
        ledger._release()
    return path.read_bytes()


def head(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def reseal(line: bytes, **changes: Any) -> bytes:
    """What somebody does who knows the format: change fields and give the record a new hash."""
    fields = json.loads(line)
    del fields["hash"]
    body = json.dumps(fields | changes, sort_keys=True, separators=(",", ":")).encode()
    return body[:-1] + b',"hash":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("ledger") / "l.jsonl"
    return path, write(path)


def _copy(closed: tuple[Path, bytes], to: Path) -> Path:
    path = to / "copy"
    path.write_bytes(closed[1])
    head(path).write_bytes(head(closed[0]).read_bytes())
    return path


def _rewrite_from(path: Path, index: int) -> None:
    """Alter a record and give it and all after it new hashes."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[index] = reseal(lines[index], reserve=99)
    for i in range(index + 1, len(lines)):
        lines[i] = reseal(lines[i], previous=json.loads(lines[i - 1])["hash"])
    path.write_bytes(b"".join(lines))


# --- the format -------------------------------------------------------------------------------------------------------


def test_a_verifier_needs_nothing_but_bytes_and_sha256(tmp_path: Path) -> None:
    # docs/auction.md, "Ledger": the hash is that of the line's bytes without `,"hash":"…"`; previous is the one before.
    data = write(tmp_path / "l", 20)
    previous = "0" * 64
    for index, line in enumerate(data.splitlines()):
        body, _, digest = line.rpartition(b',"hash":"')
        assert hashlib.sha256(body + b"}").hexdigest() == digest[:64].decode()
        record = json.loads(line)
        assert (record["index"], record["previous"]) == (index, previous)
        previous = record["hash"]


def test_the_bytes_are_canonical_json(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        ledger.append("x", zulu=1, alpha={"b": [1.25, None], "a": "ü \u2028 \ud800"}, n=np.float64(0.1), i=np.int64(7))
        ledger.append("y", array=np.arange(3), inf=float("inf"), deep=[{"nan": float("nan")}], path=Path("a"))
    for line in (tmp_path / "l").read_bytes().splitlines():
        fields = json.loads(line)
        digest = fields.pop("hash")
        again = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
        assert hashlib.sha256(again).hexdigest() == digest
    found = list(records(tmp_path / "l"))
    assert found[1].fields["n"] == 0.1
    assert found[2].fields | {"time": 0} == {
        "array": [0, 1, 2],
        "inf": None,
        "deep": [{"nan": None}],
        "path": "a",
        "time": 0,
    }


def test_records_come_back_as_they_were_appended(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l", clock=lambda: 2.0) as ledger:
        assert ledger.append("auction", winner="a", bid=1.0) == 1
        assert ledger.append("auction", winner="b", bid=2.0, time=9.0) == 2
    found = list(records(tmp_path / "l"))
    assert [r.kind for r in found] == ["open", "auction", "auction", "close"]
    assert found[1].fields == {"winner": "a", "bid": 1.0, "time": 2.0}
    assert found[2].fields["time"] == 9.0
    assert found[0].previous == GENESIS


@pytest.mark.parametrize("field", ["index", "previous", "hash"])
def test_the_chains_own_fields_cannot_be_given(tmp_path: Path, field: str) -> None:
    with Ledger(tmp_path / "l") as ledger, pytest.raises(ValueError, match=field):
        ledger.append("x", **{field: 1})
    assert verify(tmp_path / "l").ok


def test_what_json_cannot_hold_is_refused_and_leaves_the_chain_whole(tmp_path: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    with Ledger(tmp_path / "l") as ledger:
        for wrong in (object(), circle, {1, 2}, "x" * (2 << 20)):
            with pytest.raises(ValueError, match="record of kind"):
                ledger.append("x", value=wrong)
        ledger.append("fine")
    assert verify(tmp_path / "l").records == 3


def test_without_a_path_nothing_is_kept() -> None:
    with Ledger(None) as ledger:
        assert [ledger.append("x", value=object()), ledger.append("y")] == [0, 1]
        ledger.flush()


# --- what is found ----------------------------------------------------------------------------------------------------


def test_a_whole_ledger_is_found_whole(closed: tuple[Path, bytes]) -> None:
    verdict = verify(closed[0])
    assert verdict.ok
    assert verdict.records == 8
    assert verdict.kinds == {"open": 1, "round": 6, "close": 1}
    assert json.loads(json.dumps(verdict.as_json()))["head"] == verdict.head
    assert verify(closed[0], anchor=verdict.head).ok


@QUICK
@given(data=st.data())
def test_any_flipped_byte_is_found_at_its_record(
    closed: tuple[Path, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    path = _copy(closed, tmp_path)
    content = bytearray(closed[1])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    verdict = verify(path)
    assert not verdict.ok
    assert verdict.index == closed[1][:at].count(b"\n")


@QUICK
@given(data=st.data())
def test_any_flipped_byte_of_the_head_is_found(closed: tuple[Path, bytes], tmp_path: Path, data: st.DataObject) -> None:
    path = _copy(closed, tmp_path)
    content = bytearray(head(path).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    head(path).write_bytes(content)
    assert not verify(path).ok


@QUICK
@given(data=st.data(), headless=st.booleans())
def test_any_cut_is_found(closed: tuple[Path, bytes], tmp_path: Path, data: st.DataObject, headless: bool) -> None:
    path = _copy(closed, tmp_path)
    if headless:
        head(path).unlink()
    size = data.draw(st.integers(0, len(closed[1]) - 1))
    path.write_bytes(closed[1][:size])
    verdict = verify(path)
    assert not verdict.ok
    assert verdict.index == closed[1][:size].count(b"\n")
    assert "cut" in verdict.why


@QUICK
@given(data=st.data())
def test_removed_lines_are_found_and_named(closed: tuple[Path, bytes], tmp_path: Path, data: st.DataObject) -> None:
    path, lines = _copy(closed, tmp_path), closed[1].splitlines(keepends=True)
    first = data.draw(st.integers(0, len(lines) - 2))
    last = data.draw(st.integers(first, len(lines) - 2))
    path.write_bytes(b"".join(lines[:first] + lines[last + 1 :]))
    verdict = verify(path)
    assert not verdict.ok
    assert verdict.index == first
    assert verdict.line == first + 1
    named = f"record {first} was removed" if first == last else f"records {first} to {last} were removed"
    assert named in verdict.why


@QUICK
@given(data=st.data())
def test_lines_in_another_order_are_found_and_named(
    closed: tuple[Path, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    path, lines = _copy(closed, tmp_path), closed[1].splitlines(keepends=True)
    order = data.draw(st.permutations(range(len(lines))).filter(lambda p: p != sorted(p)))
    path.write_bytes(b"".join(lines[i] for i in order))
    verdict = verify(path)
    first = next(i for i, j in enumerate(order) if i != j)
    assert not verdict.ok
    assert verdict.index == first
    assert "was moved" in verdict.why


@QUICK
@given(data=st.data())
def test_repeated_and_foreign_lines_are_found(closed: tuple[Path, bytes], tmp_path: Path, data: st.DataObject) -> None:
    path, lines = _copy(closed, tmp_path), closed[1].splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines)))
    foreign = [b"\n", b"{}\n", b"null\n", b"[" * 5000 + b"\n", b'{"index":9}\n']
    line = data.draw(st.sampled_from([*lines[:at], *foreign]))
    path.write_bytes(b"".join([*lines[:at], line, *lines[at:]]))
    verdict = verify(path)
    assert not verdict.ok
    assert verdict.index == at


@pytest.mark.parametrize("which", range(8))
def test_a_record_with_a_new_hash_is_found_by_its_successor_or_the_head(
    closed: tuple[Path, bytes], tmp_path: Path, which: int
) -> None:
    path, lines = _copy(closed, tmp_path), closed[1].splitlines(keepends=True)
    lines[which] = reseal(lines[which], time=99.0)
    path.write_bytes(b"".join(lines))
    verdict = verify(path)
    assert not verdict.ok
    assert verdict.index == which


def test_a_chain_written_anew_from_some_record_on_is_found_by_the_head(
    closed: tuple[Path, bytes], tmp_path: Path
) -> None:
    path = _copy(closed, tmp_path)
    _rewrite_from(path, 3)
    verdict = verify(path)
    assert not verdict.ok
    assert "written anew" in verdict.why


def test_a_chain_written_anew_with_its_head_is_found_by_an_anchor_only(
    closed: tuple[Path, bytes], tmp_path: Path
) -> None:
    path, noted = _copy(closed, tmp_path), verify(closed[0]).head
    _rewrite_from(path, 3)
    head(path).unlink()
    assert verify(path).ok
    verdict = verify(path, anchor=noted)
    assert not verdict.ok
    assert noted in verdict.why


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="nothing: No such file"):
        verify(tmp_path / "nothing")
    (tmp_path / "empty").touch()
    assert not verify(tmp_path / "empty").ok


# --- continuing -------------------------------------------------------------------------------------------------------


def test_a_ledger_is_continued_in_the_same_chain(tmp_path: Path) -> None:
    path = tmp_path / "l"
    write(path)
    write(path)
    verdict = verify(path)
    assert verdict.ok
    assert verdict.kinds == {"open": 2, "round": 12, "close": 2}


def test_a_closed_ledger_without_its_head_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "l"
    write(path)
    head(path).unlink()
    assert any("no head file" in note for note in verify(path).notes)
    write(path)
    assert verify(path).records == 16


@pytest.mark.parametrize("cut", [1, 40, 200, 1000])
def test_a_cut_ledger_is_not_continued(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "l"
    data = write(path)
    path.write_bytes(data[:-cut])
    with pytest.raises(LedgerError, match="it was cut"):
        Ledger(path)
    assert path.read_bytes() == data[:-cut]  # evidence is left as it is


def test_a_ledger_whose_last_record_was_altered_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "l"
    lines = write(path).splitlines(keepends=True)
    for last in (lines[-1].replace(b"close", b"clOse"), reseal(lines[-1], time=7.0)[: len(lines[-1])]):
        path.write_bytes(b"".join([*lines[:-1], last.ljust(len(lines[-1]))]))
        with pytest.raises(LedgerError, match=r"record 7|stands at the end"):
            Ledger(path)


def test_a_damaged_ledger_may_be_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "l"
    data = write(path)
    path.write_bytes(data[:-10])
    with Ledger(path, set_aside=True) as ledger:
        ledger.append("x")
    assert (tmp_path / "l.damaged-1").read_bytes() == data[:-10]
    assert verify(path).kinds == {"open": 1, "x": 1, "close": 1}
    assert next(records(path)).fields["set_aside"] == "l.damaged-1"


@pytest.mark.parametrize("half", [b"x", b'{"index":7,"kind":"rou', b"\x00" * 300, b"\x00\n\x00\n"])
def test_what_a_crash_left_half_written_is_cut_and_put_on_record(tmp_path: Path, half: bytes) -> None:
    path = tmp_path / "l"
    data = write(path, close=False)
    path.write_bytes(data + half)
    if not half.endswith(b"\n"):
        before = verify(path)
        assert before.ok
        assert any("half-written" in note for note in before.notes)
    with Ledger(path):
        pass
    assert verify(path).ok
    repair = list(records(path))[7]
    assert repair.kind == "repair"
    assert repair.fields["cut_bytes"] == len(half)
    assert repair.fields["cut_sha256"] == hashlib.sha256(half).hexdigest()


def test_whole_records_written_after_the_last_seal_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "l"
    write(path, 3, close=False)
    sealed = head(path).read_bytes()
    with Ledger(path, clock=lambda: 1.5) as ledger:
        for _ in range(3):
            ledger.append("late")
        ledger.flush()
        head(path).write_bytes(sealed)  # as if it had been killed between writing and sealing
        ledger._release()
    verdict = verify(path)
    assert verdict.ok
    assert any("after the seal" in note for note in verdict.notes)
    with Ledger(path):
        pass
    assert verify(path).kinds == {"open": 3, "round": 3, "late": 3, "close": 1}


def test_only_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger(path), pytest.raises(LedgerError, match="another process is writing"):
        Ledger(path)
    Ledger(path).close()


WRITER = """
import sys
from controlplane.auction.ledger import Ledger
ledger = Ledger(sys.argv[1], max_bytes=20_000, keep=3)
print(flush=True)
i = 0
while True:
    ledger.append("round", round=i, text="x" * (i % 300))
    i += 1
    if i % 7 == 0:
        ledger.flush()
"""


def test_a_writer_killed_at_any_moment_leaves_a_ledger_that_verifies_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "l"
    rng = np.random.default_rng(1)
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(float(rng.uniform(0.0, 0.1)))
            try:
                assert verify(path).ok
            finally:
                writer.kill()
        assert verify(path).ok
    with Ledger(path, max_bytes=20_000, keep=3):
        pass
    verdict = verify(path)
    assert verdict.ok, str(verdict)
    assert len(list(tmp_path.glob("l.[0-9]*"))) <= 4
