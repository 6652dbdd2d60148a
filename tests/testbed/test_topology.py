"""A topology is checked with places, scaled to the machine, and comes up as real servers that look like a Farm."""

import contextlib
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.config import Config
from controlplane.config_errors import ConfigError
from controlplane.config_yaml import parse_yaml
from testbed import cgroups, namespaces, topology_config, topology_state
from testbed.backends import apache
from testbed.processes import StartError
from testbed.topology import AlreadyUp, Topology
from testbed.topology_file import TopologyFile, library, load, validate
from testbed.topology_plan import default_name, plan_cpu, with_backend
from testbed.topology_server import marked

needs_apache = pytest.mark.skipif(bool(apache.why_not()), reason=apache.why_not() or "-")
needs_root = pytest.mark.skipif(bool(namespaces.why_not()), reason=namespaces.why_not() or "-")


@pytest.fixture(autouse=True)
def own_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


def file(text: str) -> TopologyFile:
    return validate(parse_yaml(text, "t.yaml"))


class TestFile:
    @pytest.mark.parametrize("name", library())
    def test_a_shipped_topology_is_right_and_says_what_it_is(self, name: str):
        topology = load(name)
        assert topology.title
        assert len(topology.description) > 100

    def test_the_papers_topologies_have_their_servers_and_balancers(self):
        small, large = load("marllb-small"), load("marllb-large")
        assert (small.balancers, [(g.count, g.cpu) for g in small.servers]) == (2, [(4, 2), (3, 4)])
        assert (large.balancers, [(g.count, g.cpu) for g in large.servers]) == (6, [(12, 4), (12, 8)])
        for group in (*small.servers, *large.servers):
            assert (group.backend, group.mpm, group.workers, group.backlog) == ("apache", "prefork", 32, 128)

    @pytest.mark.parametrize(
        ("text", "mistakes"),
        [
            ("", ["t.yaml: empty: expected at least 'service:'"]),
            ("- a", ["t.yaml:1:1: expected a mapping with at least 'servers'"]),
            ("title: x", ["t.yaml:1:1: servers: this key is missing"]),
            ("servers: []", ["t.yaml:1:1: servers: expected at least 1 of them, not 0"]),
            (
                "servers:\n  - {name: a, bakend: apache}",
                ["t.yaml:2:5: servers[0]: the key 'backend' is missing (is 'bakend' meant for it?)"],
            ),
            (
                "servers:\n  - {name: a, backend: apach}",
                [
                    "t.yaml:2:5: servers[0]: expected the backend 'apache' or 'aiohttp', not 'apach'"
                    " (did you mean 'apache'?)"
                ],
            ),
            (
                "servers:\n  - {name: a, backend: apache, workrs: 3}",
                ["t.yaml:2:32: servers[0].workrs: unknown key (did you mean 'workers'?)"],
            ),
            (
                "servers:\n  - {name: A_1, backend: apache, cpu: 0}",
                [
                    "t.yaml:2:6: servers[0].name: expected a name of up to 40 small letters, digits and '-', not 'A_1'",
                    "t.yaml:2:34: servers[0].cpu: expected more than 0, not 0",
                ],
            ),
            (
                "servers: [{name: a, backend: aiohttp}]\nmachine_share: 120%",
                [
                    "t.yaml:2:1: machine_share: expected a share of the machine above 0 and at most 100%,"
                    " like 60%, not '120%'"
                ],
            ),
            (
                "servers: [{name: a, backend: aiohttp}]\nmachine_share: 0.5",
                ["t.yaml:2:1: machine_share: there is no 'cpu' that it would scale: give the servers one"],
            ),
            (
                "period: 5ms\nservers:\n  - {name: a, backend: apache, cpu: 0.1}",
                [
                    "t.yaml:3:32: servers[0].cpu: expected at least 0.2 cores with a period of 5ms"
                    " (the kernel hands out no less than 1ms), not 0.1"
                ],
            ),
            (
                "servers:\n  - {name: a, backend: apache, cpu: 0.0001}",
                ["t.yaml:2:32: servers[0].cpu: expected at least 0.001 cores, the least that the kernel knows"],
            ),
            (
                "servers:\n  - {name: a, count: 2, backend: apache}\n  - {name: a-2, backend: aiohttp}",
                ["t.yaml:3:6: servers[1].name: server a-2 is there already, in servers[0]"],
            ),
            (
                "subnet: 8.8.8.0/24\nservers: [{name: a, backend: aiohttp}]",
                ["t.yaml:1:1: subnet: expected 'auto' or a private /24 like 198.18.7.0/24, not '8.8.8.0/24'"],
            ),
            (
                "pages: {demand: gauss:4}\nservers: [{name: a, backend: aiohttp}]",
                ["t.yaml:1:9: pages.demand: unknown demand 'gauss': one of exponential, pareto, fixed"],
            ),
        ],
    )
    def test_each_mistake_has_its_place_and_what_was_expected(self, text: str, mistakes: list[str]):
        with pytest.raises(ConfigError) as error:
            file(text)
        assert str(error.value).splitlines() == mistakes

    def test_an_empty_file_and_a_missing_one_are_named(self, tmp_path: Path):
        empty = tmp_path / "empty.yaml"
        empty.write_text("")
        with pytest.raises(ConfigError, match=r"empty.yaml: empty: expected at least 'servers:'"):
            load(str(empty))
        with pytest.raises(ConfigError, match="did you mean 'simple'"):
            load("smple")

    @pytest.mark.parametrize(("text", "seconds"), [("native", 0), ("5ns", 5e-9), ("0.5ns", 5e-10), ("0.01us", 1e-8)])
    def test_the_cost_of_a_turn_is_a_duration(self, text: str, seconds: float):
        topology = file(f"pages: {{turn: {text}}}\nservers: [{{name: a, backend: aiohttp}}]")
        assert topology.pages.turn == pytest.approx(seconds)

    def test_names_of_files_become_names_of_topologies(self):
        assert default_name("./My Servers_2.yaml") == "my-servers-2"
        assert default_name("simple") == "simple"


class TestScaling:
    def test_the_small_topology_on_two_cores_by_hand(self):
        # 4 · 2 + 3 · 4 = 20 cores share 60 % of 2: each of theirs is 0.06 of ours
        quotas = plan_cpu(load("marllb-small"), cores=2)
        assert quotas == {f"two-cores-{i}": 0.12 for i in (1, 2, 3, 4)} | {f"four-cores-{i}": 0.24 for i in (1, 2, 3)}
        assert cgroups.period_for(quotas.values()) == pytest.approx(0.001 / 0.12, abs=1e-6)  # between 5 and 10 ms

    @given(st.integers(1, 512), st.lists(st.floats(0.01, 64), min_size=1, max_size=20), st.floats(0.01, 1))
    def test_quotas_keep_their_proportions_within_their_share_and_never_grow(
        self, cores: int, wanted: list[float], share: float
    ):
        rows = ", ".join(f"{{name: s{i}, backend: apache, cpu: {cpu:.4f}}}" for i, cpu in enumerate(wanted))
        topology = file(f"machine_share: {share:.4f}\nservers: [{rows}]")
        quotas = plan_cpu(topology, cores)
        asked = {group.name: group.cpu for group in topology.servers}
        assert sum(quotas.values()) <= cores * share * 1.02 + 1e-4
        largest = max(asked, key=lambda name: asked[name])  # quotas are rounded: of a small one the ratio says little
        scale = quotas[largest] / asked[largest]
        assert scale <= 1.0001
        for name, quota in quotas.items():
            assert quota == pytest.approx(asked[name] * scale, rel=1e-4, abs=1e-8)

    def test_servers_that_wait_have_as_many_workers_as_there_were_cores(self):
        waiting = with_backend(load("marllb-large"), "aiohttp")
        assert [(g.count, g.workers, g.speed) for g in waiting.servers] == [(12, 4, 1), (12, 8, 1)]
        slow = with_backend(load("simple"), "aiohttp")
        assert [(g.workers, g.speed) for g in slow.servers] == [(1, 0.5), (1, 0.25)]
        assert with_backend(waiting, "apache").servers[1].cpu == 8


MIXED = """
servers:
  - {name: fast, backend: apache, workers: 8, cpu: 0.4}
  - {name: slow, backend: apache, mpm: event, workers: 8, cpu: 0.2}
  - {name: python, backend: aiohttp, workers: 2, speed: 2}
"""


def get(address: str, path: str = "/") -> tuple[str, float]:
    began = time.monotonic()
    with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
        answer.read()
        return answer.headers["X-Server"], time.monotonic() - began


def leftovers(topology: str) -> list[str]:
    left = [f"pid {pid}" for pid in marked(f"{topology}:")]
    left += namespaces.existing(topology) + namespaces.links(topology)
    left += [str(path) for path in Path("/tmp").glob(f"{topology}*")]
    with contextlib.suppress(cgroups.NoCgroups):
        left += cgroups.find().leftovers(topology)
    return left


@pytest.fixture(scope="module", params=["namespaces", "loopback"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    if apache.why_not():
        pytest.skip(apache.why_not())
    if request.param == "namespaces" and namespaces.why_not():
        pytest.skip(namespaces.why_not())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        with Topology(file(MIXED), network=request.param) as topology:
            assert topology.state is not None
            identity = topology.state.id
            yield topology
        assert leftovers(identity) == []
        assert topology_state.all_states() == []


class TestRunning:
    def test_each_address_is_the_server_that_it_says(self, running: Topology):
        assert [get(address)[0] for address in running.addresses] == ["fast", "slow", "python"]
        assert len(set(running.addresses)) == 3

    def test_the_truth_has_every_server_up_with_its_work_and_cost(self, running: Topology):
        for address in running.addresses:
            get(address, "/?d=20")
        assert running.await_idle(5.0)
        rows = running.stats()
        assert [row["name"] for row in rows] == ["fast", "slow", "python"]
        for row in rows:
            assert row["up"]
            assert row["requests"] >= 1
            assert row["cpu_s"] > 0.0
            assert row["memory"] > 1 << 20
            assert row["busy"] == row["queued"] == 0
        assert [row["workers"] for row in rows] == [8, 8, 2]
        assert set(running.pids) >= {row["pid"] for row in rows}

    def test_a_quota_makes_a_request_wait_for_its_cpu(self, running: Topology):
        quotas = running.stats()[0]["quota_cores"], running.stats()[1]["quota_cores"]
        if quotas == (None, None):
            pytest.skip("no CPU quotas here")
        assert quotas == (0.4, 0.2)
        # 40 ms at a fifth of a core: two periods or more, of which what is left of the first may be used at once.
        assert min(get(running.addresses[1], "/?d=40")[1] for _ in range(3)) > 0.08
        assert running.capacity_s == pytest.approx(0.4 + 0.2 + 4)

    def test_a_slow_fault_divides_the_quota_and_ends_by_itself(self, running: Topology):
        if running.stats()[0]["quota_cores"] is None:
            with pytest.raises(ValueError, match="needs root"):
                running.fault("fast", kind="slow", factor=8)
            return
        running.fault("fast", kind="slow", factor=8, seconds=1.0)
        assert running.stats()[0]["quota_cores"] == pytest.approx(0.05)
        assert get(running.addresses[0], "/?d=20")[1] > 0.25  # 20 ms at a twentieth
        deadline = time.monotonic() + 10
        while running.stats()[0]["quota_cores"] != 0.4 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert min(get(running.addresses[0], "/?d=20")[1] for _ in range(5)) < 0.2

    def test_a_server_that_hangs_is_still_there_and_goes_on(self, running: Topology):
        running.fault("slow", kind="hang")
        assert running.stats()[1]["answered"] is False
        running.fault("slow", kind="none")
        assert get(running.addresses[1])[0] == "slow"

    def test_a_cut_cable_swallows_requests_until_it_is_mended(self, running: Topology):
        if not running.servers[0].namespace:
            with pytest.raises(ValueError, match="on loopback there is none"):
                running.fault("fast", kind="cut")
            return
        running.fault("fast", kind="cut", seconds=0.8)
        with pytest.raises(OSError, match="timed out"):
            socket.create_connection((running.servers[0].host, 8080), timeout=0.2)
        assert get(running.addresses[0])[0] == "fast"  # the connect is tried again after a second

    def test_faults_of_a_python_server_are_its_own(self, running: Topology):
        running.fault("python", kind="500")
        with pytest.raises(urllib.error.HTTPError):
            get(running.addresses[2])
        running.reset()
        assert get(running.addresses[2])[0] == "python"

    def test_an_unknown_fault_or_server_is_named(self, running: Topology):
        with pytest.raises(ValueError, match="unknown kind 'refuse' for an Apache: one of none, slow, hang, cut"):
            running.fault("fast", kind="refuse")
        with pytest.raises(KeyError, match="no server is called fst: fast, slow, python"):
            running.kill("fst")

    def test_a_killed_server_is_gone_whole_and_comes_back_at_its_address(self, running: Topology):
        for index, name in ((0, "fast"), (2, "python")):
            address = running.addresses[index]
            running.kill(name)
            row = running.stats()[index]
            assert (row["up"], row["busy"]) == (False, 0)
            with pytest.raises(urllib.error.URLError):
                get(address)
            running.revive(name)
            assert running.addresses[index] == address
            assert get(address)[0] == name
            assert running.dead() == []

    def test_the_configuration_is_one_that_the_balancer_takes(self, running: Topology):
        assert running.state is not None
        text = topology_config.configuration(running.state)
        document = parse_yaml(text, "web.yaml")
        config = Config.model_validate(document.root, context={"resolver": lambda host: host})
        assert [str(server.address) for server in config.service["web"].servers] == running.addresses


@needs_root
def test_two_topologies_stand_side_by_side_and_a_name_is_taken_once():
    text = file("servers: [{name: a, backend: aiohttp}]")
    with Topology(text, name="one") as first, Topology(text) as second:
        assert first.addresses != second.addresses
        assert {state.name for state in topology_state.all_states()} >= {"one"}
        with pytest.raises(AlreadyUp, match="one is up already"), Topology(text, name="one"):
            pass
        assert get(first.addresses[0])[0] == "a"


@needs_apache
def test_a_start_that_fails_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    broken = apache.configuration

    def with_nonsense(*arguments: object) -> str:
        text = broken(*arguments)  # type: ignore[arg-type]
        return text + "Nonsense On\n" if "ServerName b" in text else text

    monkeypatch.setattr(apache, "configuration", with_nonsense)
    topology = Topology(file("servers: [{name: a, backend: apache, workers: 2}, {name: b, backend: apache}]"))
    with pytest.raises(StartError, match="Invalid command 'Nonsense'"), topology:
        pass
    assert topology_state.all_states() == []
    assert topology.state is None


def test_without_the_means_for_namespaces_the_reason_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(namespaces, "why_not", lambda: "network namespaces need root")
    text = file("servers: [{name: a, backend: aiohttp, workers: 2}]")
    notes: list[str] = []
    with Topology(text, note=notes.append) as topology:
        assert re.fullmatch(r"127\.0\.0\.1:\d+", topology.addresses[0])
    assert "network namespaces need root: the servers are plain processes on loopback" in notes
    with pytest.raises(StartError, match="need root; with `network: loopback`"), Topology(text, network="namespaces"):
        pass
