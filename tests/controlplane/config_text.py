"""Writes configuration files for tests and reads them without the network."""

import socket
from pathlib import Path
from typing import Any

from controlplane.config import Config, ConfigError, load

HOSTS = {"app.example": "192.0.2.1", "db.example": "2001:db8::1", "localhost": "127.0.0.1"}


def resolve(host: str) -> str:
    """Resolve the few names that tests use."""
    if host in HOSTS:
        return HOSTS[host]
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def read(folder: Path, text: str | bytes, **options: Any) -> Config:
    """Return the configuration that a file of this text is."""
    file = folder / "web.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(file, resolve=resolve, **options)


def problems(folder: Path, text: str | bytes, **options: Any) -> list[str]:
    """Return what is wrong with a file of this text, one line each, its folder left out; [] when nothing is."""
    try:
        read(folder, text, **options)
    except ConfigError as error:
        return str(error).replace(f"{folder}/", "").splitlines()
    return []


def service(*lines: str) -> str:
    """Return a configuration whose one service has these lines besides what it needs; the first of them is line 5."""
    head = ["service:", "  web:", "    listen: 127.0.0.1:8080", "    servers: [127.0.0.1:9001]"]
    return "\n".join([*head, *("    " + line for line in lines)]) + "\n"
