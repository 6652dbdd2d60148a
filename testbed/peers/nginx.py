"""nginx as a peer, http and stream, and as the origin of the cost comparison: one worker, keep-alive, no log."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from testbed.peers.peer import Health, Peer, Server
from testbed.processes import free_port

_STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")  # where Debian's libnginx-mod-stream puts it
_MAIN = """\
{modules}worker_processes 1;
daemon off;
{user}error_log stderr error;
pid nginx.pid;
events {{ worker_connections 16384; }}
"""
_HTTP = """\
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
{body}}}
"""


def is_installed() -> bool:
    return program() is not None


def program() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def has_stream() -> bool:
    return is_installed() and _STREAM_MODULE.exists()


def configuration(
    port: int, servers: Sequence[Server], *, mode: str, balance: str, health: Health | None = None
) -> str:
    """balance: a directive of nginx's upstream block, like least_conn; empty: its weighted round robin.

    The nginx that one need not pay for asks no server how it is. With health it marks one down after a failed
    connection, for as long as lies between two checks of the others, and sends the request to the next; without, a
    request is sent once.
    """
    fails = f" fail_timeout={math.ceil(health.inter_s)}s" if health else " max_fails=0"
    rule = f"{balance};" if balance else ""
    lines = []
    for server in servers:
        told = f" weight={server.weight}" if server.weight else ""
        told += f" max_conns={server.maxconn}" if server.maxconn else ""
        lines.append(f"server {server.address}{told}{fails};")
    group = " ".join(lines)
    if mode == "tcp":
        main = _MAIN.format(modules=f"load_module {_STREAM_MODULE};\n", user=_user())
        return (
            f"{main}stream {{\n    tcp_nodelay on;\n    upstream service {{ {rule} {group} }}\n"
            f"    server {{ listen 127.0.0.1:{port} backlog=4096; proxy_pass service;"
            f" proxy_next_upstream {'on' if health else 'off'}; proxy_connect_timeout 1s; proxy_timeout 3600s; }}\n}}\n"
        )
    body = f"""\
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_next_upstream {"error timeout" if health else "off"};
    proxy_connect_timeout 1s;
    proxy_read_timeout 60s;
    proxy_max_temp_file_size 0;
    upstream service {{ {rule} {group} keepalive 512; keepalive_requests 1000000000; keepalive_timeout 3600s; }}
    server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://service; }} }}
"""
    return _MAIN.format(modules="", user=_user()) + _HTTP.format(body=body)


def start(
    servers: Sequence[Server],
    *,
    mode: str = "http",
    balance: str = "least_conn",
    name: str | None = None,
    cpu: int | None = None,
    health: Health | None = None,
) -> Peer:
    peer = Peer(name or f"nginx {mode} {balance}", free_port())
    return _start(peer, configuration(peer.port, servers, mode=mode, balance=balance, health=health), cpu)


def start_origin(*, cpu: int | None = None) -> Peer:
    """An origin that serves /small (13 bytes) from memory, and /10k and /1m by sendfile from the page cache."""
    peer = Peer("nginx-origin", free_port())
    root = peer.folder / "root"
    root.mkdir()
    for name, size in (("10k", 10 << 10), ("1m", 1 << 20)):
        (root / name).write_bytes(b"x" * size)
    body = f"""\
    open_file_cache max=16 inactive=1h;
    open_file_cache_valid 1h;
    server {{
        listen 127.0.0.1:{peer.port} backlog=4096;
        root {root};
        location = /small {{ default_type text/plain; return 200 "hello, world\\n"; }}
        location = /health {{ return 200 "ok\\n"; }}
    }}
"""
    return _start(peer, _MAIN.format(modules="", user=_user()) + _HTTP.format(body=body), cpu)


def _start(peer: Peer, configuration_text: str, cpu: int | None) -> Peer:
    found = program()
    if found is None:
        peer.stop()
        raise FileNotFoundError("nginx is not installed (Debian: apt-get install nginx-light)")
    path = peer.folder / "nginx.conf"
    path.write_text(configuration_text)
    return peer.start([found, "-p", str(peer.folder), "-c", str(path), "-e", "stderr"], cpu=cpu)


def _user() -> str:
    """As root, workers stay root: they read a folder that only we may enter. Otherwise the directive only warns."""
    return "user root;\n" if os.geteuid() == 0 else ""
