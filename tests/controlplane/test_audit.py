"""The audit log: every record a line, nobody waits for it, and what is lost is counted and told (row 36)."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from controlplane.deployment.audit import KEPT, LINE_BYTES_MAX, WAITING_MAX, AuditLog
from tests.faults.running import wait_until


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_record_is_a_line_of_who_what_and_when(tmp_path):
    audit = AuditLog(str(tmp_path / "audit.jsonl"))
    audit.record("enforced", who="127.0.0.1", service="web", policy="sed", spec={"name": "sed"})
    audit.record("ended", who="supervisor")
    audit.close()
    first, last = lines(tmp_path / "audit.jsonl")
    assert list(first) == ["time", "who", "service", "what", "policy", "spec"]
    assert (first["who"], first["what"], last["service"]) == ("127.0.0.1", "enforced", None)
    assert str(first["time"]).endswith("+00:00")
    assert audit.written == 2
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o640


def test_without_a_file_the_newest_are_kept_in_memory():
    audit = AuditLog()
    for number in range(KEPT + 10):
        audit.record("set", who="x", number=number)
    assert len(audit.latest) == KEPT
    assert audit.latest[-1]["number"] == KEPT + 9
    audit.close()


def test_a_path_that_cannot_be_opened_fails_at_once(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        AuditLog(str(tmp_path / "no" / "audit.jsonl"))


def test_a_full_disk_drops_and_counts():
    audit = AuditLog("/dev/full")
    for _ in range(50):
        audit.record("set", who="x")
    wait_until(lambda: audit.dropped == 50)
    assert audit.written == 0
    audit.close()


def test_a_blocked_pipe_keeps_nobody_and_the_loss_is_told_once_it_flows_again(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    audit = AuditLog(str(path))
    begun = time.monotonic()
    for number in range(5 * WAITING_MAX):
        audit.record("set", who="x", number=number, filler="y" * 200)
    assert time.monotonic() - begun < 5
    wait_until(lambda: audit.dropped > 0 and audit._lines.empty())
    got: list[bytes] = []
    stop = threading.Event()

    def drain() -> None:
        while not stop.is_set():
            try:
                got.append(os.read(reader, 65536))
            except BlockingIOError:
                time.sleep(0.005)

    thread = threading.Thread(target=drain)
    thread.start()
    wait_until(lambda: got)
    audit.record("after", who="x")
    wait_until(lambda: b'"after"' in b"".join(got))
    stop.set()
    thread.join()
    os.close(reader)
    audit.close()
    told = [line for line in b"".join(got).splitlines() if b'"dropped"' in line]
    assert json.loads(told[-1])["records"] > 0


def test_rotation_opens_the_file_anew(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(str(path))
    audit.record("one", who="x")
    wait_until(lambda: audit.written == 1)
    path.rename(tmp_path / "old")
    audit.reopen()
    audit.record("two", who="x")
    audit.close()
    assert [line["what"] for line in lines(path)] == ["two"]
    assert [line["what"] for line in lines(tmp_path / "old")] == ["one"]


def test_a_record_that_is_too_long_says_who_and_what_still(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(str(path))
    audit.record("set", who="x", spec={"name": "y" * 2 * LINE_BYTES_MAX})
    audit.close()
    (line,) = lines(path)
    assert (line["what"], line["who"]) == ("set", "x")
    assert line["too_long"] > LINE_BYTES_MAX
