"""Settings and directives: what is encoded is read back, and what a reader could not use safely is refused."""

import ipaddress
import math
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm_layout.layout import ADDRESS_BYTES, CLASSIC_SERVER, CURVE_POINTS, DIRECTIVE, RULES, SERVER_ENTRY, SETTINGS
from shm_layout.payload import (
    FREE_SERVER,
    DirectiveData,
    ServerData,
    SettingsData,
    check_directive,
    check_settings,
    decode_directive,
    decode_settings,
    pack_address,
    pack_network,
    unpack_address,
)
from shm_layout.segment import PayloadRejectedError, Segment

N = 3
TABLE = 7
finite = st.floats(0, 2.0**100, width=32)


def classic(**changes: float) -> np.ndarray[Any, Any]:
    rows = np.zeros(N, dtype=CLASSIC_SERVER)
    values = {"capacity": 100, "sensitivity": 1, "risk_aversion": 0.3, "target_load_ratio": 0.8, "neural": 1} | changes
    for name, value in values.items():
        rows[name] = value
    return rows


def whole_directive(rule: str = "bids", **changes: Any) -> DirectiveData:
    """A directive with every array."""
    values: dict[str, Any] = {
        "ids": [1, 2, 3],
        "rule": rule,
        "policy": "test",
        "weights": [1, 0, 2],
        "curves": np.tile(np.arange(CURVE_POINTS), (N, 1)),
        "alias_keep": [0, 2**31, 2**32 - 1],
        "alias_other": [2, 1, 0],
        "table": np.arange(TABLE) % N,
        "classic": classic(),
        "aging": [[1, 0.5], [0, 0], [4, 9]],
    }
    return DirectiveData(**values | changes)


def refusal(directive: DirectiveData) -> str:
    with pytest.raises(PayloadRejectedError) as refused:
        check_directive(directive.encode(), N, TABLE)
    return refused.value.reason


@st.composite
def directives(draw: st.DrawFn) -> DirectiveData:
    n = draw(st.integers(1, 6))
    rule = draw(st.sampled_from(RULES))
    steps = np.array(draw(st.lists(finite, min_size=n * 3, max_size=n * 3)), dtype=np.float32).reshape(n, 3)
    steps.sort(axis=1)
    slots = st.integers(0, n - 1)
    weights = draw(st.lists(finite, min_size=n, max_size=n).filter(lambda w: sum(w) > 0))
    some: dict[str, Callable[[], Any]] = {
        "weights": lambda: weights,
        "curves": lambda: np.repeat(steps, [1, 50, CURVE_POINTS - 51], axis=1),
        "alias_keep": lambda: draw(st.lists(st.integers(0, 2**32 - 1), min_size=n, max_size=n)),
        "alias_other": lambda: draw(st.lists(slots, min_size=n, max_size=n)),
        "table": lambda: draw(st.lists(slots, min_size=1, max_size=20)),
        "classic": lambda: np.array([(draw(finite) + 1, 0, draw(finite), 0.5, 1, 7, 2, 0)] * n, dtype=CLASSIC_SERVER),
        "aging": lambda: np.array(draw(st.lists(finite, min_size=n * 2, max_size=n * 2))).reshape(n, 2),
    }
    needed = {
        "maglev": "table",
        "alias": "alias_keep alias_other",
        "wrr": "weights",
        "bids": "curves",
        "classic": "classic",
    }
    names = {name for name in some if draw(st.booleans())} | set(needed[rule].split())
    return DirectiveData(
        ids=draw(st.lists(st.integers(0, 2**64 - 1), min_size=n, max_size=n)),
        rule=rule,
        policy=draw(st.text("abc-é", max_size=20)),
        sequence=draw(st.integers(0, 2**64 - 1)),
        choices=draw(st.integers(0, 4096)),
        enforcing_percent=draw(st.integers(0, 100)),
        classic_noise=draw(finite),
        **{name: some[name]() for name in sorted(names)},
    )


@given(directives())
def test_a_directive_is_read_back_as_it_was_written(directive: DirectiveData) -> None:
    payload = directive.encode()
    check_directive(payload)
    read = decode_directive(payload, epoch=4)
    assert (read.rule, read.policy, read.epoch) == (directive.rule, directive.policy, 4)
    for name in ("sequence", "choices", "enforcing_percent", "classic_noise"):
        assert read.head[name] == getattr(directive, name)
    for name in ("ids", "weights", "curves", "alias_keep", "alias_other", "table", "classic", "aging"):
        written, got = getattr(directive, name), getattr(read, name)
        assert (written is None) == (got is None)
        if written is not None:
            assert np.array_equal(np.asarray(written, dtype=got.dtype), got)


@given(directives(), st.data())
def test_any_change_of_a_directives_bytes_is_refused_or_harmless(directive: DirectiveData, data: st.DataObject) -> None:
    payload = directive.encode()
    n = len(np.asarray(directive.ids))
    memory = payload.view(np.uint8)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(payload) * 8 - 1) | st.integers(0, DIRECTIVE.itemsize - 1))
        memory[place] = data.draw(st.integers(0, 255))
    cut = payload[: data.draw(st.integers(1, len(payload)))] if data.draw(st.booleans()) else payload
    try:
        check_directive(cut.copy(), n, 20)
    except PayloadRejectedError:
        return
    read = decode_directive(cut, epoch=0)
    rows = len(read.ids)
    assert 1 <= rows <= n
    if read.weights is not None:
        assert np.isfinite(read.weights).all()
        assert (read.weights >= 0).all()
        assert read.weights.sum(dtype=np.float64) > 0
    if read.curves is not None:
        assert np.isfinite(read.curves).all()
        assert (read.curves[:, 0] >= 0).all()
        assert (np.diff(read.curves.astype(np.float64), axis=1) >= 0).all()
    if read.aging is not None:
        assert np.isfinite(read.aging).all()
        assert (read.aging >= 0).all()
    for slots in (read.alias_other, read.table):
        assert slots is None or (slots < rows).all()


@given(st.binary(max_size=600).map(lambda b: b + bytes(-len(b) % 8)))
def test_random_bytes_are_no_payload(data: bytes) -> None:
    for check in (check_settings, check_directive):
        with pytest.raises(PayloadRejectedError):
            check(b"\xff" + data[1:] if data else data)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, -1e-30, 1e39])
def test_numbers_that_are_no_amounts_are_refused_everywhere(bad: float) -> None:
    assert refusal(whole_directive(weights=[1, bad, 1])) == "value"
    for row in ([bad, 1], [1, bad]):
        assert refusal(whole_directive(aging=[[1, 1], row, [1, 1]])) == "value"
    for point in (0, 1, 50, CURVE_POINTS - 1):
        curves = np.tile(np.arange(CURVE_POINTS, dtype=np.float64), (N, 1))
        curves[1, point] = bad
        assert refusal(whole_directive(curves=curves)) == "value"
    with np.errstate(over="ignore"):
        for name in ("capacity", "sensitivity", "risk_aversion", "target_load_ratio", "neural"):
            assert refusal(whole_directive(classic=classic(**{name: bad}))) == "value"
    assert refusal(whole_directive(classic_noise=bad)) == "value"
    assert refusal(whole_directive(classic_reserve=bad)) == "value"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weights": [0, 0, 0]}, "value"),
        ({"curves": np.tile(np.arange(CURVE_POINTS)[::-1], (N, 1))}, "value"),
        ({"alias_other": [0, 1, 3]}, "table"),
        ({"table": [0, 1, 2**32 - 1]}, "table"),
        ({"table": np.zeros(TABLE + 1)}, "bounds"),
        ({"enforcing_percent": 101}, "value"),
        ({"choices": 5000}, "value"),
        ({"classic": classic(capacity=0)}, "value"),
        ({"classic": classic(target_load_ratio=1.5)}, "value"),
        ({"rule": "bids", "curves": None}, "bounds"),
        ({"rule": "wrr", "weights": None}, "bounds"),
        ({"rule": "alias", "alias_keep": None}, "bounds"),
        ({"rule": "alias", "alias_other": None}, "bounds"),
        ({"rule": "maglev", "table": None}, "bounds"),
        ({"rule": "maglev", "table": []}, "bounds"),
        ({"rule": "classic", "classic": None}, "bounds"),
    ],
)
def test_a_directive_that_cannot_be_used_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert refusal(whole_directive(**changes)) == reason


def test_a_free_slots_classic_row_may_be_empty() -> None:
    rows = classic()
    rows[1] = 0
    check_directive(whole_directive("classic", ids=[1, 0, 3], classic=rows).encode(), N, TABLE)


def test_a_directive_for_more_servers_than_there_are_slots_is_refused() -> None:
    payload = whole_directive().encode()
    check_directive(payload, N, TABLE)
    with pytest.raises(PayloadRejectedError):
        check_directive(payload, N - 1, TABLE)


@pytest.mark.parametrize("field", [name for name in DIRECTIVE.names or () if name.startswith("off_")])
@pytest.mark.parametrize("offset", [1, 8, 252, 260, 2**63, 2**64 - 8, 2**64 - 264, 2**32])
def test_an_offset_that_leads_elsewhere_is_refused(field: str, offset: int) -> None:
    payload = whole_directive().encode()
    payload.view(np.uint8)[: DIRECTIVE.itemsize].view(DIRECTIVE)[field] = offset
    with pytest.raises(PayloadRejectedError) as refused:
        check_directive(payload, N, TABLE)
    assert refused.value.reason == "bounds"


def test_an_array_may_not_reach_beyond_the_payload() -> None:
    payload = whole_directive().encode()
    end = payload.nbytes
    head = payload.view(np.uint8)[: DIRECTIVE.itemsize].view(DIRECTIVE)
    head["off_weights"] = end - 8  # three floats do not fit into eight bytes
    with pytest.raises(PayloadRejectedError):
        check_directive(payload, N, TABLE)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": [1, 2]},
        {"curves": np.zeros((N, CURVE_POINTS - 1))},
        {"curves": np.zeros(N)},
        {"alias_other": [0]},
        {"classic": classic()[:2]},
        {"rule": "magic"},
        {"policy": "p" * 64},
        {"policy": "a\0b"},
        {"sequence": -1},
        {"sequence": 2**64},
    ],
)
def test_a_directive_of_wrong_shape_is_not_even_encoded(changes: dict[str, Any]) -> None:
    with pytest.raises(PayloadRejectedError):
        whole_directive(**changes).encode()


def test_a_refused_directive_leaves_the_last_one_in_force(segment: Segment) -> None:
    segment.begin_controller()
    segment.publish_directive(whole_directive(sequence=5))
    for weights in ([1, math.nan, 1], [0, 0, 0]):
        with pytest.raises(PayloadRejectedError):
            segment.publish_directive(whole_directive(weights=weights))
    assert segment.read_directive().head["sequence"] == 5
    assert segment.directives_published == 1


def test_a_directive_may_come_as_bytes(segment: Segment) -> None:
    payload = whole_directive(epoch=3).encode()
    segment.publish_directive(payload.tobytes(), epoch=3)
    assert segment.read_directive().epoch == 3
    segment.publish_directive(bytearray(payload.tobytes()), epoch=4)
    assert segment.read_directive().curves is not None


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_read_back_as_they_were_written() -> None:
    servers = [
        ServerData(
            id=2**64 - 1,
            name="big",
            address=pack_address("127.0.0.1", 9002),
            state="drain",
            health="ejected",
            weight=256,
            maxconn=64,
            backup=True,
            slowstart_begin_ns=5,
            slowstart_ns=6,
        ),
        FREE_SERVER,
    ]
    networks = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")]
    settings = SettingsData(version=7, servers=servers, fallback_curve="sed", trusted=networks, accepting=False)
    payload = np.frombuffer(settings.encode(), dtype=np.uint64)
    read = decode_settings(payload, epoch=1)
    assert (read.head["version"], read.head["n_slots"], read.head["accepting"]) == (7, 2, 0)
    assert (read.head["fallback_rule"], read.head["fallback_curve"]) == (RULES.index("bids"), 1)
    assert read.head["timeout_tunnel_ns"] == 3600 * 10**9
    assert read.names == ["big", ""]
    assert read.ids.tolist() == [2**64 - 1, 0]
    big = read.servers[0]
    assert [int(big[name]) for name in ("state", "health", "weight", "maxconn", "backup")] == [2, 2, 256, 64, 1]
    address = big["address"].tobytes()[: int(big["address_bytes"])]
    assert unpack_address(address) == ("127.0.0.1", 9002)
    assert read.head["n_trusted"] == 2
    assert read.head["trusted"]["prefix_bits"][:2].tolist() == [104, 32]
    assert read.head["trusted"]["address"][0].tobytes() == ipaddress.ip_address("::ffff:10.0.0.0").packed


def test_settings_without_servers_are_settings() -> None:
    payload = SettingsData().encode()
    assert len(payload) == SETTINGS.itemsize
    check_settings(payload, 1)


@pytest.mark.parametrize(
    "settings",
    [
        SettingsData(fallback_rule="lsq"),
        SettingsData(fallback_curve="bids"),
        SettingsData(retry_budget_percent=101),
        SettingsData(stale_after_ns=2**63),
        SettingsData(timeout_queue_ns=-1),
        SettingsData(maxconn=2**32),
        SettingsData(trusted=[ipaddress.ip_network("10.0.0.0/8")] * 17),
        SettingsData(servers=[ServerData(id=0, state="ready")]),
        SettingsData(servers=[ServerData(id=1, state="free")]),
        SettingsData(servers=[ServerData(id=1, state="gone")]),
        SettingsData(servers=[ServerData(id=1, health="sick")]),
        SettingsData(servers=[ServerData(id=1, weight=257)]),
        SettingsData(servers=[ServerData(id=1, name="n" * 64)]),
        SettingsData(servers=[ServerData(id=1, name="n" * 32 + "é" * 16)]),
        SettingsData(servers=[ServerData(id=1, address=b"x" * (ADDRESS_BYTES + 1))]),
        SettingsData(servers=[ServerData(id=2**64)]),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: SettingsData) -> None:
    with pytest.raises(PayloadRejectedError):
        settings.encode()


def test_settings_of_wrong_length_are_refused() -> None:
    payload = SettingsData(servers=[ServerData(id=1)]).encode()
    for wrong in (payload[:-8], payload + bytes(8), payload[: SETTINGS.itemsize - 8], b""):
        with pytest.raises(PayloadRejectedError):
            check_settings(wrong)
    with pytest.raises(PayloadRejectedError):
        check_settings(payload, 0)


@given(st.integers(0, SETTINGS.itemsize + SERVER_ENTRY.itemsize - 1), st.integers(0, 255))
def test_any_change_of_a_settings_byte_is_refused_or_harmless(place: int, value: int) -> None:
    payload = bytearray(SettingsData(servers=[ServerData(id=1, name="a")]).encode())
    payload[place] = value
    try:
        check_settings(payload, 4)
    except PayloadRejectedError:
        return
    read = decode_settings(np.frombuffer(bytes(payload), dtype=np.uint64), epoch=0)
    assert len(read.servers) == read.head["n_slots"] == 1
    assert read.servers["address_bytes"][0] <= ADDRESS_BYTES
    assert read.servers["state"][0] < 4
    assert read.head["n_trusted"] <= 16


def test_a_segment_takes_no_more_servers_than_it_has_slots(segment: Segment) -> None:
    servers = [ServerData(id=i + 1) for i in range(segment.limits.max_servers)]
    segment.publish_settings(SettingsData(servers=servers))
    with pytest.raises(PayloadRejectedError):
        segment.publish_settings(SettingsData(servers=[*servers, ServerData(id=99)]))
    assert len(segment.read_settings().servers) == segment.limits.max_servers


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "port", "family", "size"),
    [
        ("127.0.0.1", 8080, socket.AF_INET, 16),
        ("::1", 65535, socket.AF_INET6, 28),
        ("2001:db8::5", 1, socket.AF_INET6, 28),
        ("/run/web.sock", 0, socket.AF_UNIX, 16),
        ("@abstract", 0, socket.AF_UNIX, 11),
    ],
)
def test_an_address_is_a_sockaddr_and_back(address: str, port: int, family: int, size: int) -> None:
    packed = pack_address(address, port)
    assert len(packed) == size
    assert int.from_bytes(packed[:2], "little") == family
    assert unpack_address(packed) == (address, port)


def test_what_is_no_address_is_an_error() -> None:
    for address in ("localhost", "300.1.1.1", "", "/" + "p" * 120):
        with pytest.raises(ValueError, match=r"."):
            pack_address(address, 1)
    assert unpack_address(b"") == ("", 0)


def test_an_ipv4_network_is_mapped() -> None:
    assert pack_network(ipaddress.ip_network("192.0.2.0/24")) == (bytes(10) + b"\xff\xff\xc0\0\2\0", 120)
    assert pack_network(ipaddress.ip_network("::/0")) == (bytes(16), 0)
