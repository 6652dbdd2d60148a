"""Durations, addresses, networks and statuses as people write them."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.config_values import (
    Address,
    format_duration,
    format_status,
    parse_duration,
    parse_listen,
    parse_server_address,
    parse_status,
    resolve_host,
    server_name_from,
)
from tests.controlplane.config_text import resolve


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5.0), ("200ms", 0.2), ("1m", 60.0), ("1h", 3600.0), ("1.5s", 1.5), ("250us", 0.00025), ("2d", 172800.0)],
)
def test_a_duration_is_a_number_and_its_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["5", 5, 0.2, "s", "-1s", "5 s", "1e3s", "5S", "1m30s", "٥s", None, True, [], "9" * 50 + "s"]
)
def test_anything_else_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration with its unit"):
        parse_duration(text)


@given(st.integers(1, 30 * 86400 * 1_000_000).map(lambda us: us / 1e6))
def test_a_duration_written_is_read_as_the_same(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "family", "sockaddr"),
    [
        ("127.0.0.1:8080", socket.AF_INET, ("127.0.0.1", 8080)),
        (":8080", socket.AF_INET, ("0.0.0.0", 8080)),
        ("*:80", socket.AF_INET, ("0.0.0.0", 80)),
        ("127.0.0.1:0", socket.AF_INET, ("127.0.0.1", 0)),
        ("[::1]:80", socket.AF_INET6, ("::1", 80, 0, 0)),
        ("[::]:80", socket.AF_INET6, ("::", 80, 0, 0)),
        ("[fe80::1%1]:80", socket.AF_INET6, ("fe80::1", 80, 0, 1)),
        ("app.example:80", socket.AF_INET, ("192.0.2.1", 80)),
        ("unix:/run/v.sock", socket.AF_UNIX, "/run/v.sock"),
    ],
)
def test_an_address_to_listen_on(text: str, family: int, sockaddr: object) -> None:
    address = parse_listen(text, resolve)
    assert (address.family, address.sockaddr, str(address)) == (family, sockaddr, text)


def test_what_an_address_resolves_to_can_be_bound_and_connected(tmp_path: object) -> None:
    for text in ("127.0.0.1:0", f"unix:{tmp_path}/a.sock"):
        address = parse_listen(text)
        with socket.socket(address.family) as listener, socket.socket(address.family) as client:
            listener.bind(address.sockaddr)
            listener.listen()
            name = listener.getsockname()
            there = parse_server_address(text if address.is_unix else f"127.0.0.1:{name[1]}")
            client.connect(there.sockaddr)


def test_a_unix_path_that_the_kernel_cannot_take_is_refused() -> None:
    assert parse_listen("unix:/" + "a" * 106).path == "/" + "a" * 106
    with pytest.raises(ValueError, match="at most 107 bytes"):
        parse_listen("unix:/" + "a" * 107)


def test_a_host_name_with_both_families_gives_ipv4() -> None:
    assert resolve_host("localhost") == "127.0.0.1"


def test_a_host_name_that_is_none_is_not_looked_up() -> None:
    def never(host: str) -> str:
        raise AssertionError(host)

    for text in ("a b:80", "a..b:80", "-a:80", "é:80", "a\n:80", "a" * 64 + ":80", "1.2.3:80", "\0:80"):
        with pytest.raises(ValueError, match="expected the address of a server"):
            parse_server_address(text, never)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("127.0.0.1:9001", "127.0.0.1:9001"),
        ("[::1]:80", "[::1]:80"),
        ("unix:/run/my app.sock", "unix:run_my_app.sock"),
        ("unix:/" + "x" * 100, "x" * 63),
    ],
)
def test_a_server_without_a_name_is_called_by_its_address(text: str, name: str) -> None:
    assert server_name_from(parse_server_address(text)) == name


@pytest.mark.parametrize(
    ("value", "ranges"),
    [
        (200, ((200, 200),)),
        ("200-399", ((200, 399),)),
        ("200, 204,301-302", ((200, 200), (204, 204), (301, 302))),
    ],
)
def test_statuses(value: object, ranges: object) -> None:
    assert parse_status(value) == ranges
    assert parse_status(format_status(parse_status(value))) == ranges


@pytest.mark.parametrize("value", [99, 600, "2xx", "399-200", "", "200,", True, None, 200.0])
def test_what_is_no_status(value: object) -> None:
    with pytest.raises(ValueError, match="expected statuses"):
        parse_status(value)


@given(st.text())
def test_no_text_trips_the_address_parsers(text: str) -> None:
    for parse in (parse_listen, parse_server_address):
        said = ""
        try:
            assert isinstance(parse(text, resolve), Address)
        except ValueError as error:
            said = str(error)
        assert "\n" not in said
