"""The ledger's verification from outside: a verifier written from the documentation, and the command by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane import cli
from controlplane.auction.ledger import Ledger, verify

N = 12
Good = tuple[Path, bytes, bytes]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    """A ledger that tests put damaged copies in the place of: path, bytes, bytes of the head."""
    path = tmp_path_factory.mktemp("ledger") / "events.jsonl"
    with Ledger(path, clock=lambda: 1.5) as ledger:
        for i in range(N):
            ledger.append("round", round=i, reserve=i / 3, bids=[0.1 * i, 2.0], name="grün")
    return path, path.read_bytes(), head(path).read_bytes()


def head(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def damage(good: Good, data: bytes) -> Path:
    path, _, sealed = good
    path.write_bytes(data)
    head(path).write_bytes(sealed)
    return path


def independent(path: Path) -> int | None:
    """Return the first bad record of a ledger of one file, or None, by docs/auction.md, "Ledger": json and hashlib."""
    previous, index, end = "0" * 64, 0, 0
    for line in path.read_bytes().splitlines(keepends=True):
        body, stated = line[:-76] + b"}", line[-67:-3].decode("ascii", "replace")
        if line[-76:-67] != b',"hash":"' or line[-3:] != b'"}\n' or hashlib.sha256(body).hexdigest() != stated:
            return index
        record = json.loads(body)
        if record["index"] != index or record["previous"] != previous:
            return index
        previous, index, end = stated, index + 1, end + len(line)
    sealed = json.loads(head(path).read_bytes())
    return None if (sealed["records"], sealed["hash"], sealed["end"]) == (index, previous, end) else index


def test_a_verifier_written_from_the_documentation_agrees(good: Good) -> None:
    path, data, _ = good
    assert independent(damage(good, data)) is None
    assert verify(path).ok
    lines, rng = data.splitlines(keepends=True), np.random.default_rng(1)
    for place in rng.integers(0, len(data), 100):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        assert independent(damage(good, changed)) == verify(path).index == data[:place].count(b"\n")
    for i in range(len(lines)):
        assert independent(damage(good, b"".join(lines[:i] + lines[i + 1 :]))) == verify(path).index == i
        assert independent(damage(good, b"".join(lines[:i]))) == verify(path).index == i


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_byte_that_was_put_in_or_taken_out_is_found_in_its_record(good: Good, data: st.DataObject) -> None:
    whole = good[1]
    place = data.draw(st.integers(0, len(whole) - 1))
    put_in = data.draw(st.sampled_from([b"", b" ", b"0", b"\n", b"\0", b'"']))
    changed = whole[:place] + put_in + whole[place + (put_in == b"") :]
    verdict = verify(damage(good, changed))
    # In a run of equal bytes what differs first is later than the place.
    differs = (i for i, (a, b) in enumerate(zip(whole, changed, strict=False)) if a != b)
    first = next(differs, min(len(whole), len(changed)))
    assert (verdict.ok, verdict.index) == (False, whole[:first].count(b"\n")), verdict


def test_a_ledger_that_is_being_written_verifies(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        for _ in range(5):
            for _ in range(300):
                ledger.append("x", filler="y" * 100)
            assert verify(tmp_path / "l").ok


# --- vickrey auction verify -------------------------------------------------------------------------------------------

LINES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int, str]] = {
    "left alone": (lambda x: x, 0, "14 records, unbroken"),
    "altered": (lambda x: [*x[:4], x[4].replace(b"round", b"rounx"), *x[5:]], 1, ":5: record 4 was altered"),
    "removed": (lambda x: x[:4] + x[5:], 1, ":5: record 4 was removed"),
    "several removed": (lambda x: x[:4] + x[7:], 1, ":5: records 4 to 6 were removed"),
    "re-ordered": (lambda x: [*x[:4], x[5], x[4], *x[6:]], 1, ":5: record 4 was moved"),
    "repeated": (lambda x: [*x[:5], x[4], *x[5:]], 1, ":6: record 4 stands where record 5 is expected"),
    "cut": (lambda x: x[:-1], 1, "cut at the end: 13 records, but the head counted 14"),
    "cut within a line": (lambda x: [*x[:-1], x[-1][:-10]], 1, "cut at the end: 13 records, but the head counted 14"),
    "empty": (lambda x: [], 1, "cut at the end: 0 records"),
    "binary": (lambda x: [bytes(range(256)) * 8], 1, ":1: record 0 was altered"),
}


@pytest.mark.parametrize("case", LINES)
def test_the_command_says_what_became_of_a_ledger(good: Good, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, status, says = LINES[case]
    path = damage(good, b"".join(change(good[1].splitlines(keepends=True))))
    assert cli.main(["auction", "verify", str(path)]) == status
    out = capsys.readouterr().out
    assert says in out
    assert out.count(str(path)) == 1
    assert cli.main(["auction", "verify", str(path), "--json"]) == status
    document = json.loads(capsys.readouterr().out)
    assert (document["file"], document["ok"]) == (str(path), status == 0)


def test_the_command_notes_that_a_head_is_gone(good: Good, capsys: pytest.CaptureFixture[str]) -> None:
    path = damage(good, good[1])
    head(path).unlink()
    assert cli.main(["auction", "verify", str(path)]) == 0
    assert "note: there is no head file" in capsys.readouterr().out


def test_the_command_refuses_what_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, says in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        assert cli.main(["auction", "verify", str(path)]) == 1
        assert says in capsys.readouterr().err
    for arguments in ([], ["a", "b"]):
        assert cli.main(["auction", "verify", *arguments]) == 2
