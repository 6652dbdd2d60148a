"""The listening sockets of a service: opened once by the supervisor, which keeps them while data planes come and go.

A TCP address gets one socket a worker (SO_REUSEPORT: the kernel spreads the connections); a unix address one socket
that the workers share. As long as the supervisor holds them, the kernel queues connections, and a restart of the data
plane refuses nobody.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass

from controlplane.config_values import Address

BACKLOG = 4096  # the kernel bounds it by net.core.somaxconn


class ListenError(OSError):
    """An address that cannot be listened on; strerror says which and why, in the user's words."""

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass
class Listeners:
    """The sockets of one service, one per worker, in the order of the workers."""

    sockets: list[socket.socket]
    address: Address
    inode: int = 0  # of a unix socket's file that we made: only that one is removed at the end

    @property
    def fds(self) -> list[int]:
        return [sock.fileno() for sock in self.sockets]

    @property
    def shown(self) -> str:
        """The address as the configuration has it, with the port that was given where it asked for any (0)."""
        if self.address.is_unix or self.address.port or not self.sockets:
            return self.address.text
        return f"{self.address.text.rpartition(':')[0]}:{self.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Close the sockets; the file of a unix socket is removed if it is still ours."""
        for sock in self.sockets:
            sock.close()
        self.sockets = []
        if self.inode:
            try:
                if os.stat(self.address.path).st_ino == self.inode:
                    os.unlink(self.address.path)
            except OSError:
                pass
            self.inode = 0


def open_listeners(address: Address, workers: int) -> Listeners:
    """Open the sockets for that many workers; raises ListenError and leaves nothing open when one of them fails."""
    if address.is_unix:
        first = open_unix_socket(address.path)
        return Listeners([first, *(first.dup() for _ in range(workers - 1))], address, os.stat(address.path).st_ino)
    sockets: list[socket.socket] = []
    target = address.sockaddr
    try:
        if address.port:
            # Sockets of one user that all set SO_REUSEPORT share a port without a word: another balancer's traffic
            # would be split with ours. A bind without it fails when anybody listens there.
            open_tcp_socket(address).close()
        for _ in range(workers):
            sock = _tcp_socket(address.family)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(target)
            target = sock.getsockname()  # port 0: the others take the port that the first was given
        for sock in sockets:
            sock.listen(BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise error if isinstance(error, ListenError) else _refused(address.text, error) from error
    return Listeners(sockets, address)


def open_tcp_socket(address: Address) -> socket.socket:
    """Listen on an address alone, without SO_REUSEPORT; raises ListenError."""
    sock = _tcp_socket(address.family)
    try:
        sock.bind(address.sockaddr)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _refused(address.text, error) from error
    return sock


def _tcp_socket(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return sock


def open_unix_socket(path: str, mode: int | None = None) -> socket.socket:
    """Listen on a unix socket; one that a dead process left behind is replaced, one that answers is refused.

    mode: of the file, set before anybody can connect; None leaves it to the umask.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _remove_stale(path)
        # bind() makes the file: with a tight umask there is no moment at which others may connect.
        umask = os.umask(0o777 & ~mode) if mode is not None else None
        try:
            sock.bind(path)
        finally:
            if umask is not None:
                os.umask(umask)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _refused(f"unix:{path}", error) from error
    return sock


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "a file of that name exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # somebody listens, with a full backlog
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _refused(where: str, error: OSError) -> ListenError:
    return ListenError(error.errno, f"cannot listen on {where}: {_explain(error)}")


def _explain(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another process listens there already"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{error.strerror} (ports below 1024 need CAP_NET_BIND_SERVICE)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return error.strerror or str(error)
