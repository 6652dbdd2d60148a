"""The data-plane process: reads its configuration, enters C, and runs no Python until it ends.

Standard input is one JSON document, then end of file (ARCHITECTURE.md, "Processes"). Exit status: 0 when it ended as
asked, 1 with one line on standard error when it could not start or a worker failed, 2 when the document is not what was
expected.
"""

import json
import sys
from typing import Any

MODES = {"http": 0, "tcp": 1}
IO = {"auto": 0, "io_uring": 1, "epoll": 2}
SERVICE_KEYS = {"segment", "mode", "workers", "listen_fds", "io"}


def fail(status: int, text: str) -> int:
    print(f"vickrey data plane: {text}", file=sys.stderr)
    return status


def main() -> int:
    try:
        document: dict[str, Any] = json.loads(sys.stdin.buffer.read())
        services = document["services"]
        supervisor_pid = int(document.get("supervisor_pid", 0))
        for service in services:
            if unknown := set(service) - SERVICE_KEYS:
                raise ValueError(f"unknown key {min(unknown)!r} in a service")
            if len(service["listen_fds"]) != service["workers"] or not 1 <= service["workers"] <= 64:
                raise ValueError(
                    f"{service['segment']}: {service['workers']} workers, {len(service['listen_fds'])} listeners"
                )
    except (ValueError, KeyError, TypeError) as error:
        return fail(2, f"standard input: {error}: expected one JSON document as ARCHITECTURE.md describes it")

    from dataplane._dataplane import ffi, lib

    native = ffi.new("struct socket_service[]", max(len(services), 1))
    try:
        for index, service in enumerate(services):
            native[index].segment = service["segment"].encode()
            native[index].mode = MODES[service["mode"]]
            native[index].io = IO[service.get("io", "auto")]
            native[index].workers = service["workers"]
            for worker, descriptor in enumerate(service["listen_fds"]):
                native[index].listen_fds[worker] = descriptor
    except (KeyError, TypeError, IndexError, OverflowError) as error:
        return fail(2, f"standard input: {error}: mode is one of {', '.join(MODES)}; io is one of {', '.join(IO)}")
    text = ffi.new("char[]", 512)
    if lib.socket_engine_run(native, len(services), supervisor_pid, text, 512):
        return fail(1, ffi.string(text).decode(errors="replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
