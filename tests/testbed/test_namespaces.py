"""Network namespaces: planned by hand-checked addresses, made for real, and removed whole or half made."""

import ipaddress
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from testbed import namespaces
from testbed.namespaces import Namespace
from testbed.topology_state import new_id

needs_root = pytest.mark.skipif(bool(namespaces.why_not()), reason=namespaces.why_not() or "-")


def test_servers_get_consecutive_addresses_and_names_the_kernel_takes():
    subnet = ipaddress.IPv4Network("198.18.7.0/24")
    planned = namespaces.plan("vk-tb1a2b", [f"s{i}" for i in range(240)], subnet)
    assert planned[0] == Namespace("vk-tb1a2b-s0", "vk-tb1a2b.1", "198.18.7.11", "198.18.7.1")
    assert planned[239].address == "198.18.7.250"
    assert all(len(space.link) <= 15 for space in planned)  # IFNAMSIZ less its NUL
    assert len({space.address for space in planned}) == 240
    with pytest.raises(ValueError, match="at most 240"):
        namespaces.plan("vk-tb1a2b", ["s"] * 241, subnet)


@pytest.fixture
def pair() -> Iterator[list[Namespace]]:
    topology = new_id()
    pair = namespaces.plan(topology, ["a", "b"], namespaces.free_subnet())
    yield pair
    for space in pair:
        space.remove()
    assert namespaces.existing(f"{topology}-") == []
    assert namespaces.links(f"{topology}.") == []


@needs_root
def test_a_subnet_in_use_is_not_given_again():
    first = namespaces.free_subnet()
    assert first.subnet_of(namespaces.POOL)
    assert not namespaces.free_subnet([str(first)]).overlaps(first)


@needs_root
def test_the_host_reaches_each_server_at_its_own_address(pair: list[Namespace]):
    listeners = []
    for space in pair:
        space.make()
        listeners.append(namespaces.call_in(space.name, lambda s=space: socket.create_server((s.address, 8080))))
    for space, listener in zip(pair, listeners, strict=True):
        with listener, socket.create_connection((space.address, 8080), timeout=5) as client:
            assert client.getsockname()[0] == space.host
            with listener.accept()[0] as server:
                server.sendall(space.name.encode())
            assert client.recv(64).decode() == space.name


@needs_root
def test_a_call_leaves_the_caller_where_it_was_and_hands_on_what_it_raises(pair: list[Namespace]):
    pair[0].make()
    before = os.readlink("/proc/thread-self/ns/net")
    assert namespaces.call_in(pair[0].name, lambda: os.readlink("/proc/thread-self/ns/net")) != before
    assert os.readlink("/proc/thread-self/ns/net") == before
    with pytest.raises(ZeroDivisionError):
        namespaces.call_in(pair[0].name, lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        namespaces.call_in("vk-nowhere", lambda: None)


@needs_root
def test_a_cut_cable_swallows_what_is_sent_and_a_mended_one_carries_it(pair: list[Namespace]):
    space = pair[0]
    space.make()
    with namespaces.call_in(space.name, lambda: socket.create_server((space.address, 8080))):
        space.cut(True)
        with pytest.raises((TimeoutError, OSError)):
            socket.create_connection((space.address, 8080), timeout=0.3)
        space.cut(False)
        socket.create_connection((space.address, 8080), timeout=5).close()


@needs_root
def test_processes_are_found_by_their_namespace(pair: list[Namespace]):
    pair[0].make()
    child = subprocess.Popen(["sleep", "30"], preexec_fn=pair[0].enter)
    try:
        assert namespaces.pids_in([pair[0].name]) == [child.pid]
        assert namespaces.pids_in(["vk-nowhere"]) == []
    finally:
        child.kill()
        child.wait()


@needs_root
def test_what_was_half_made_is_removed(pair: list[Namespace]):
    """`netns add` makes a file and then mounts on it: killed in between, it leaves a file that is no namespace."""
    pair[0].make()
    (namespaces.RUN / pair[1].name).touch()
    for space in pair:
        space.remove()
        space.remove()  # again: nothing to do
    with pytest.raises(namespaces.NamespaceError, match="ip"):
        namespaces.ip("link", "show", pair[0].link)
