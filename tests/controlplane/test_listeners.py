"""Listening sockets: one a worker, never shared with another balancer, unix ones cleaned up."""

import socket

import pytest

from controlplane.config_values import parse_listen
from controlplane.listeners import ListenError, open_listeners, open_unix_socket


def test_each_worker_gets_a_socket_on_the_same_port():
    listeners = open_listeners(parse_listen("127.0.0.1:0"), 3)
    try:
        ports = {sock.getsockname()[1] for sock in listeners.sockets}
        assert len(listeners.fds) == 3
        assert ports == {int(listeners.shown.rpartition(":")[2])}
    finally:
        listeners.close()


def test_a_port_that_somebody_listens_on_is_refused_even_when_he_would_share_it():
    listeners = open_listeners(parse_listen("127.0.0.1:0"), 1)
    try:
        with pytest.raises(ListenError, match=r"cannot listen on 127\.0\.0\.1:\d+: another process listens there"):
            open_listeners(parse_listen(listeners.shown), 2)
    finally:
        listeners.close()
    open_listeners(parse_listen(listeners.address.text), 1).close()


def test_an_address_that_is_not_ours_is_refused_in_words():
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1:8080: this machine has no such address"):
        open_listeners(parse_listen("192.0.2.1:8080"), 1)


def test_a_port_is_free_again_after_close():
    first = open_listeners(parse_listen("127.0.0.1:0"), 2)
    shown = first.shown
    first.close()
    open_listeners(parse_listen(shown), 2).close()


def test_workers_share_a_unix_socket_and_its_file_goes_with_it(tmp_path):
    path = tmp_path / "app.sock"
    listeners = open_listeners(parse_listen(f"unix:{path}"), 2)
    assert len(set(listeners.fds)) == 2
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    with pytest.raises(ListenError, match="another process listens there"):
        open_listeners(parse_listen(f"unix:{path}"), 1)
    listeners.close()
    assert not path.exists()


def test_a_unix_socket_that_a_dead_process_left_is_replaced(tmp_path):
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listeners = open_listeners(parse_listen(f"unix:{path}"), 1)
    listeners.close()
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "data"
    path.write_text("precious")
    with pytest.raises(ListenError, match="is no socket"):
        open_listeners(parse_listen(f"unix:{path}"), 1)
    assert path.read_text() == "precious"


def test_an_admin_socket_is_for_its_owner_alone(tmp_path):
    path = tmp_path / "admin.sock"
    open_unix_socket(str(path), mode=0o600).close()
    assert path.stat().st_mode & 0o777 == 0o600
