"""A real Apache: its pages cost what they say, its status is read rightly, and it is nobody special."""

import http.client
import os
import shutil
import socket
import statistics
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.backends import apache
from testbed.processes import Child, accepts, free_port, process_tree

needs_apache = pytest.mark.skipif(bool(apache.why_not()), reason=apache.why_not() or "-")

# Two real answers of Apache 2.4.71, shortened.
PREFORK = """127.0.0.1
ServerVersion: Apache/2.4.71 (Debian)
ServerMPM: prefork
Total Accesses: 14
Total kBytes: 10522
CPUUser: .05
CPUSystem: .01
CPUChildrenUser: .5
CPUChildrenSystem: 0
Uptime: 7
BusyWorkers: 4
IdleWorkers: 3
Scoreboard: __WR_KW....
"""
EVENT = """ServerMPM: event
Total Accesses: 1
Total kBytes: 0
Uptime: 1
Processes: 1
ConnsTotal: 2
Scoreboard: W_______
"""


class TestStatus:
    def test_busy_is_who_has_a_request_other_than_ours(self):
        status = apache.parse_status(PREFORK)
        # W, R and W of seven workers: one W answers the question itself, K only keeps a connection
        assert status == {
            "mpm": "prefork",
            "busy": 2,
            "keepalive": 1,
            "workers": 7,
            "requests": 14,
            "size_bytes": 10522 << 10,
            "uptime_s": 7.0,
            "cpu_s": pytest.approx(0.56),
            "scoreboard": "__WR_KW....",
        }

    def test_an_idle_event_apache_is_not_busy_with_our_question(self):
        assert apache.parse_status(EVENT)["busy"] == 0

    @pytest.mark.parametrize("text", ["", "<html>404</html>", "Uptime: 5\n", "Scoreboard: ___\n"])
    def test_another_page_is_refused(self, text: str):
        with pytest.raises(ValueError, match="server-status"):
            apache.parse_status(text)


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A folder that Apache's own user may enter; pytest's may not be."""
    folder = Path(tempfile.mkdtemp(prefix="vickrey-apache-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def calibration(root: Path) -> apache.Calibration:
    apache.write_documents(root / "htdocs")
    return apache.calibrate(root / "calibration")


class Running:
    def __init__(self, server: apache.Apache, folder: Path, child: Child) -> None:
        self.server, self.folder, self.child = server, folder, child

    def get(self, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.server.port}{path}", timeout=30) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def status(self) -> dict[str, object]:
        status = apache.read_status(self.server.status_port, 5.0)
        assert status is not None
        return status


def run(root: Path, calibration: apache.Calibration, **settings: object) -> Iterator[Running]:
    port, status_port = free_port(), free_port()
    server = replace(apache.Apache("s1", port=port, status_port=status_port), **settings)
    folder = root / f"s1-{port}"
    apache.write(server, folder, root / "htdocs", calibration)
    child = apache.start(server, folder)
    try:
        child.wait_ready(lambda: accepts(port) and apache.read_status(status_port) is not None)
        yield Running(server, folder, child)
    finally:
        child.stop()


@pytest.fixture(scope="module")
def prefork(root: Path, calibration: apache.Calibration) -> Iterator[Running]:
    yield from run(root, calibration, workers=4, turn_s=2e-9, size=100)


@pytest.fixture(scope="module")
def event(root: Path, calibration: apache.Calibration) -> Iterator[Running]:
    yield from run(root, calibration, mpm="event", workers=4, keepalive_s=60.0)


def cost_ms(root: Path, calibration: apache.Calibration, server: Running, path: str) -> float:
    """What a page costs at the speed of the calibration, milliseconds: the least beside the best of calibrations in
    between, since of two cores of a shared machine one may be half as fast, and which one changes by the second."""
    costs, speeds = [], []
    for i in range(7):
        costs += [float(server.get(path)[1]["X-Cpu-Ms"]) for _ in range(3)]
        speeds.append(apache.calibrate(root / f"again-{i}-{time.monotonic_ns()}", rounds=3).per_ms)
    return min(costs) * max(speeds) / calibration.per_ms


@needs_apache
class TestPages:
    def test_work_costs_the_cpu_time_that_is_asked_for(
        self, root: Path, calibration: apache.Calibration, prefork: Running
    ):
        """Within a quarter: another engine on the same core warms and cools the caches."""
        assert cost_ms(root, calibration, prefork, "/?d=20") == pytest.approx(20, rel=0.25)

    def test_turns_cost_what_the_topology_says(self, root: Path, calibration: apache.Calibration, prefork: Running):
        """5,000,000 turns of 2 ns are 10 ms."""
        assert cost_ms(root, calibration, prefork, "/dummy.php/?n=5000000") == pytest.approx(10, rel=0.25)

    def test_the_counter_is_printed_as_the_php_page_of_the_traces_prints_it(self, event: Running):
        assert event.get("/dummy.php/?n=12345")[2] == rb"4000\n8000\n12000"

    @pytest.mark.parametrize(
        ("path", "status", "length"),
        [
            ("/", 200, 100),
            ("/any/path?size=12345", 200, 12345),
            ("/?d=0&size=0", 200, 0),
            ("/?n=0", 200, 0),
            ("/health", 200, 3),
            ("/static/100k", 200, 100 << 10),
            ("/static/10m", 200, 10 << 20),
            ("/static/11m", 404, None),
            ("/server-status?auto", 404, None),  # only on the listener of its own
            ("/?d=x", 400, None),
            ("/?d=-1", 400, None),
            ("/?d=nan", 400, None),
            ("/?d=1e9", 400, None),
            ("/?n=1e30", 400, None),
            ("/?size=1e12", 400, None),
        ],
    )
    def test_each_page_answers(self, prefork: Running, path: str, status: int, length: int | None):
        found, headers, body = prefork.get(path)
        assert found == status
        assert headers["X-Server"] == "s1"
        if length is not None:
            assert len(body) == length

    def test_the_wikipedia_mix_gives_the_same_title_the_same_page(self, prefork: Running, event: Running):
        titles = [f"/wiki/Title_{i}" for i in range(40)]
        sizes = [len(prefork.get(title)[2]) for title in titles]
        assert sizes == [len(event.get(title)[2]) for title in titles]
        assert len(set(sizes)) > 30
        assert 5_000 < statistics.median(sizes) < 30_000  # 12,000 in the long run
        costs = [float(prefork.get(title)[1]["X-Cpu-Ms"]) for title in titles]
        assert 5 < statistics.mean(costs) < 20  # exponential of mean 10: of 40, 1.6 is the standard error

    def test_objects_are_static_files_of_very_different_sizes(self, prefork: Running):
        sizes = [len(prefork.get(f"/images/thumb/{i}.png")[2]) for i in range(80)]
        assert min(sizes) >= 1_000
        assert max(sizes) > 10 * statistics.median(sizes)
        assert sizes[0] == len(prefork.get("/images/thumb/0.png?cache=no")[2])


@needs_apache
class TestTruth:
    def test_busy_workers_are_counted_while_they_work_and_the_queue_when_they_do_not_suffice(self, prefork: Running):
        threads = [threading.Thread(target=prefork.get, args=("/?d=1500",)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            deadline = time.monotonic() + 10
            while (busy := prefork.status()["busy"]) != 2 and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            for thread in threads:
                thread.join()
        assert busy == 2
        # Five that say nothing hold all four workers, and the fifth waits in the kernel.
        held = [socket.create_connection(("127.0.0.1", prefork.server.port)) for _ in range(5)]
        try:
            deadline = time.monotonic() + 10
            while (queued := self.queued(prefork)) != 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert queued == 1
            assert apache.read_status(prefork.server.status_port, 0.3) is None  # nobody is left to answer
        finally:
            for connection in held:
                connection.close()

    @staticmethod
    def queued(running: Running) -> int:
        return apache.queued(running.child.pid, "127.0.0.1", running.server.port)

    def test_requests_and_bytes_are_counted(self, event: Running):
        before = event.status()
        for _ in range(5):
            event.get("/static/1m")
        after = event.status()
        assert int(str(after["requests"])) - int(str(before["requests"])) == 6  # and the one for `before`
        assert int(str(after["size_bytes"])) - int(str(before["size_bytes"])) >= 5 << 20

    def test_idle_connections_hold_no_worker_of_the_event_mpm(self, event: Running):
        held = []
        for _ in range(8):  # twice the workers
            connection = http.client.HTTPConnection("127.0.0.1", event.server.port, timeout=10)
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b"ok\n"
            held.append(connection)
        assert event.status()["busy"] == 0
        for connection in held:
            connection.close()

    def test_nobody_there_is_an_error_and_not_a_busy_server(self):
        with pytest.raises(ConnectionRefusedError):
            apache.read_status(free_port())


@needs_apache
def test_it_has_no_privileges(prefork: Running):
    for pid in process_tree(prefork.child.pid):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert set(status["Uid"].split()) == {str((apache.user() or (os.getuid(), 0))[0])}
        assert int(status["CapEff"], 16) == 0


@needs_apache
def test_a_port_that_is_taken_is_named_in_its_log(root: Path, calibration: apache.Calibration):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = apache.Apache("s2", port=taken.getsockname()[1], status_port=free_port(), workers=1)
        apache.write(server, root / "s2", root / "htdocs", calibration)
        child = apache.start(server, root / "s2")
        try:
            assert child.process.wait(20) != 0
            assert "Address already in use" in child.log() + apache.error_log(root / "s2")
        finally:
            child.stop()
