"""`vickrey testbed`: real servers to balance over, Apache or Python, brought up from a file and taken down whole."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.topology import Topology
    from testbed.topology_file import TopologyFile
    from testbed.topology_state import State

DESCRIPTION = """\
Bring up real servers from a topology's file, look at them, take them down.
As root each server has a network namespace and a CPU quota of its own; else they are processes on loopback."""

EXAMPLES = """
  vickrey testbed list                                 the topologies that come with Vickrey
  vickrey testbed up simple                            in the foreground; Ctrl-C takes it down
  vickrey testbed up simple -d --write-config web.yaml in the background, with a configuration to balance over it
  vickrey run web.yaml
  vickrey testbed status                               what the servers are doing
  vickrey testbed down                                 nothing stays behind, also when its starter was killed
  vickrey testbed show simple > mine.yaml              a file to begin with
  vickrey testbed up mine.yaml --network loopback --backend aiohttp
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_json

    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str, description: str) -> Any:
        sub = actions.add_parser(name, help=text, description=description)
        add_json(sub)
        return sub

    up = action(
        "up",
        "start the servers of a topology",
        "Start the servers of a topology and show where they are.\n"
        "Stays in the foreground until Ctrl-C, which takes everything down; --detach goes to the background.",
    )
    up.add_argument("topology", metavar="TOPOLOGY", help="name of a shipped topology, or a YAML file")
    up.add_argument("-d", "--detach", action="store_true", help="leave it running; `vickrey testbed down` ends it")
    up.add_argument("--name", help="what it is called (default: the file's name)")
    up.add_argument("--network", choices=["auto", "namespaces", "loopback"], help="instead of what the file says")
    up.add_argument("--backend", choices=["apache", "aiohttp"], help="all servers of this kind, of the same capacity")
    up.add_argument("--write-config", metavar="FILE", help="write a configuration for `vickrey run` over its servers")
    up.add_argument("--log", help=argparse.SUPPRESS)  # of a detached one: its own

    down = action(
        "down",
        "end a topology and remove all of it",
        "End topologies and remove their processes, namespaces, cables, control groups and files,\n"
        "also when their starter was killed half way.",
    )
    down.add_argument("names", nargs="*", metavar="NAME", help="default: the one that is up")
    down.add_argument("--all", action="store_true", help="every one, and whatever dead ones have left anywhere")

    status = action("status", "what the servers are doing", "Show each server: where it is, how busy, what it used.")
    status.add_argument("name", nargs="?", metavar="NAME", help="default: all that are up")

    config = action(
        "config",
        "print a configuration over its servers",
        "Print a configuration for `vickrey run` over the servers of a topology that is up.",
    )
    config.add_argument("name", nargs="?", metavar="NAME", help="default: the one that is up")
    config.add_argument("--balancer", type=int, default=1, metavar="K", help="which, when there are several")

    action("list", "the topologies that come with Vickrey", "List the topologies that come with Vickrey.")
    show = action("show", "print a topology's file", "Check a topology's file and print it, as a file to begin with.")
    show.add_argument("topology", metavar="TOPOLOGY", help="name of a shipped topology, or a YAML file")


def run(args: argparse.Namespace) -> int:
    actions = {"up": _up, "down": _down, "status": _status, "config": _config, "list": _list, "show": _show}
    return actions[args.action](args)


def _fail(error: Any, status: int = 1) -> NoReturn:
    from controlplane.command import CommandError

    raise CommandError(str(error), status=status) from None


def _load(name: str) -> TopologyFile:
    from controlplane.command import CommandError
    from controlplane.config_errors import ConfigError
    from testbed.topology_file import load

    try:
        return load(name)
    except ConfigError as error:
        raise CommandError(str(error), details={"problems": error.as_json()}) from None


def _name(args: argparse.Namespace) -> str:
    import re

    from testbed.topology_plan import default_name

    if args.name is None:
        return default_name(args.topology)
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", args.name):
        _fail(f"expected --name of up to 40 small letters, digits and '-', not '{args.name}'", 2)
    return str(args.name)


def _up(args: argparse.Namespace) -> int:
    from testbed.topology_plan import with_backend

    file = _load(args.topology)
    name = _name(args)
    if args.backend:
        file = with_backend(file, args.backend)
    if args.detach:
        return _up_detached(args, name)
    return _up_here(args, file, name)


def _up_here(args: argparse.Namespace, file: TopologyFile, name: str) -> int:
    from pathlib import Path

    from controlplane.command import print_json
    from testbed.interrupts import Deferred
    from testbed.namespaces import NamespaceError
    from testbed.processes import StartError
    from testbed.topology import AlreadyUp, Topology
    from testbed.topology_file import find

    def note(text: str) -> None:
        print(f"{name}: {text}", file=sys.stderr, flush=True)

    topology = Topology(
        file, name=name, path=str(find(args.topology).resolve()), network=args.network, is_program=True, note=note
    )
    # From here on signals are looked at where it is safe: between two steps of the start, and while it is up.
    with Deferred() as signals:
        try:
            with topology:
                document = _document(topology)
                if args.write_config:
                    document["configurations"] = _write_configurations(topology, Path(args.write_config))
                if args.json:
                    print_json(document)
                else:
                    _print_up(document)
                    note("up; Ctrl-C takes it down")
                sys.stdout.flush()
                _watch(topology, signals, note)
        except (StartError, NamespaceError, AlreadyUp, FileNotFoundError, OSError, ValueError) as error:
            signals.forget()
            _fail(error)
        except KeyboardInterrupt:
            signals.forget()
            _fail("interrupted; nothing is left")
        signals.forget()
        note("down; nothing is left")
    return 0


def _watch(topology: Topology, signals: Any, note: Any) -> None:
    """Wait for a signal; say when a server ends by itself."""
    told: set[str] = set()
    while not signals.wait(1.0):
        dead = set(topology.dead())
        for server in sorted(dead - told):
            note(f"server {server} has ended")
        told = dead


def _document(topology: Topology) -> dict[str, Any]:
    state = topology.state
    assert state is not None
    return {**_about(state), "capacity_s": topology.capacity_s, "servers": [_placed(s) for s in state.servers]}


def _about(state: State) -> dict[str, Any]:
    return {
        "name": state.name,
        "id": state.id,
        "title": state.title,
        "file": state.file,
        "phase": state.phase if state.is_alive else "stale",
        "pid": state.owner,
        "network": state.network,
        "subnet": state.subnet or None,
        "period_s": state.period_s or None,
        "turn_ns": state.turn_ns or None,
        "balancers": state.balancers,
        "warnings": state.warnings,
    }


def _placed(server: Any) -> dict[str, Any]:
    return {
        "name": server.name,
        "address": server.address,
        "backend": server.backend,
        "mpm": server.mpm or None,
        "workers": server.workers,
        "speed": server.speed,
        "quota_cores": server.cpu,
        "pid": server.pid,
        "namespace": server.namespace or None,
    }


def _print_up(document: dict[str, Any]) -> None:
    from controlplane.table import NOTHING, print_table

    rows = [
        [
            server["name"],
            server["address"],
            _kind(server),
            str(server["workers"]),
            NOTHING if server["quota_cores"] is None else f"{server['quota_cores']:.3g}",
            str(server["pid"]),
        ]
        for server in document["servers"]
    ]
    print_table(["SERVER", "ADDRESS", "BACKEND", ">WORKERS", ">CORES", ">PID"], rows, document["name"])
    for path in document.get("configurations", []):
        print(f"vickrey run {path}")


def _kind(server: dict[str, Any]) -> str:
    return f"apache {server['mpm']}" if server.get("mpm") else str(server["backend"])


def _up_detached(args: argparse.Namespace, name: str) -> int:
    """Run the same command in a process of its own, and wait for the one document that it prints."""
    import json
    import os
    import subprocess

    from controlplane.command import CommandError, print_json
    from testbed import topology_state
    from testbed.interrupts import Deferred

    running = topology_state.find(name)
    if running is not None and running.is_alive:
        _fail(f"{name} is up already (pid {running.owner}); `vickrey testbed down {name}` ends it")
    log = topology_state.run_folder() / f"{name}.log"
    command = [sys.executable, "-m", "controlplane.cli", "testbed", "up", args.topology, "--json", "--name", name]
    for option in ("network", "backend", "write_config"):
        if getattr(args, option):
            command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    with Deferred() as signals, open(log, "w+b") as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        output, told, document = b"", 0, None
        while document is None:
            ended = child.poll() is not None
            output += child.stdout.read() or b""
            told = _relay(errors, told)
            try:
                document = json.loads(output)
            except ValueError:
                if ended:
                    break
            if signals.wait(0.05) and not ended:
                child.terminate()
                child.wait()
                signals.forget()
                log.unlink(missing_ok=True)
                return 1
        child.stdout.close()
    if document is None or "error" in document:
        child.wait()
        log.unlink(missing_ok=True)
        # It has said on standard error what went wrong, and that was relayed: a message of its own would repeat it.
        if args.json:
            print_json(document or {"error": f"it ended with status {child.returncode}"})
            return 1
        if document is None:
            raise CommandError(f"it ended with status {child.returncode}")
        return 1
    if args.json:
        print_json(document)
    else:
        _print_up(document)
        print(f"{name}: up (pid {child.pid}); `vickrey testbed down {name}` ends it", file=sys.stderr)
    child.returncode = 0  # it outlives us, on purpose: subprocess shall not warn of it
    return 0


def _relay(file: Any, told: int) -> int:
    """Pass on what the detached one has written to standard error since; returns how much that is by now."""
    import os

    text = os.pread(file.fileno(), 1 << 20, told)
    sys.stderr.write(text.decode(errors="replace"))
    sys.stderr.flush()
    return told + len(text)


def _the_one(name: str | None) -> State:
    from testbed import topology_state

    states = topology_state.all_states()
    if name is not None:
        for state in states:
            if state.name == name:
                return state
        _fail(f"no topology called {name} is up{_those(states)}")
    if len(states) == 1:
        return states[0]
    _fail(f"which one?{_those(states)}" if states else "no topology is up", 2 if states else 1)


def _those(states: list[State]) -> str:
    return f" (there are {', '.join(state.name for state in states)})" if states else ""


def _down(args: argparse.Namespace) -> int:
    from controlplane.command import print_json
    from testbed import topology_state, topology_sweep

    if args.all and args.names:
        _fail("give names or --all, not both", 2)
    states = topology_state.all_states() if args.all else [_the_one(name) for name in args.names or [None]]
    done, left = [], 0
    for state in states:
        was_alive = state.is_alive
        swept = topology_sweep.bring_down(state)
        left += len(swept.left)
        done.append({**_about(state), "was_stale": not was_alive, **vars(swept), "phase": "down"})
    for stray in topology_sweep.strays() if args.all else []:
        swept = topology_sweep.sweep(stray)
        left += len(swept.left)
        done.append({"name": stray, "id": stray, "was_stale": True, **vars(swept), "phase": "down"})
    if args.json:
        print_json({"topologies": done})
    elif not done:
        print("no topology is up")
    for row in [] if args.json else done:
        what = f"{row['processes']} processes, {row['namespaces']} namespaces, {row['cgroups']} control groups"
        gone = f": its starter was gone; removed {what}" if row["was_stale"] else ""
        print(f"{row['name']} is down{gone}")
        for thing in row["left"]:
            print(f"vickrey testbed: {row['name']}: could not be removed: {thing}", file=sys.stderr)
    for path in topology_state.run_folder().glob("*.log"):
        if not path.with_suffix(".json").exists():
            path.unlink(missing_ok=True)
    return 1 if left else 0


def _status(args: argparse.Namespace) -> int:
    from controlplane.command import print_json
    from testbed import topology_state

    states = [_the_one(args.name)] if args.name else topology_state.all_states()
    found = [{**_about(state), "servers": _measured(state)} for state in states]
    if args.json:
        print_json({"topologies": found})
        return 0
    if not found:
        print("no topology is up")
    for i, document in enumerate(found):
        if i:
            print()
        _print_status(document)
    return 0


_LOOK_S = 0.25  # between two looks, from which the CPU in use follows


def _measured(state: State) -> list[dict[str, Any]]:
    import contextlib
    import time
    from concurrent.futures import ThreadPoolExecutor

    from testbed import cgroups
    from testbed.topology_server import measure

    hierarchy = None
    with contextlib.suppress(cgroups.NoCgroups):
        hierarchy = cgroups.find()
    groups = [hierarchy.group(server.cgroup) if hierarchy and server.cgroup else None for server in state.servers]
    with ThreadPoolExecutor(max_workers=max(len(state.servers), 1)) as pool:

        def look() -> tuple[float, list[dict[str, Any]]]:
            return time.monotonic(), list(pool.map(measure, state.servers, groups))

        began, first = look()
        time.sleep(_LOOK_S)
        ended, second = look()
    for before, now in zip(first, second, strict=True):
        if "cpu_s" in before and "cpu_s" in now and before["pid"] == now["pid"]:
            now["cpu_cores"] = max(now["cpu_s"] - before["cpu_s"], 0.0) / (ended - began)
    return second


def _print_status(document: dict[str, Any]) -> None:
    from controlplane.table import NOTHING, number, print_table

    title = f"{document['name']}: {document['phase']}, pid {document['pid']}, {document['network']}"
    if document["phase"] == "stale":
        title = f"{document['name']}: stale, its starter (pid {document['pid']}) is gone; "
        title += f"`vickrey testbed down {document['name']}` removes what it left"
    rows = []
    for server in document["servers"]:
        quota = "" if server["quota_cores"] is None else f"/{server['quota_cores']:.3g}"
        memory = server.get("memory")
        rows.append(
            [
                server["name"],
                server["address"],
                _kind(server),
                "up" if server["up"] else "down",
                str(server["pid"] or NOTHING),
                f"{server['busy']}/{server['workers']}",
                number(server["queued"]),
                f"{server['cpu_cores']:.2f}{quota}" if "cpu_cores" in server else NOTHING,
                number(server.get("cpu_s"), 1),
                number(server.get("requests")),
                NOTHING if memory is None else f"{memory / (1 << 20):.0f}",
            ]
        )
    columns = ["SERVER", "ADDRESS", "BACKEND", "STATE", ">PID", ">BUSY", ">QUEUED", ">CORES", ">CPU S", ">REQUESTS"]
    print_table([*columns, ">MIB"], rows, title)


def _config(args: argparse.Namespace) -> int:
    from controlplane.command import print_json
    from testbed.topology_config import configuration, tree

    state = _the_one(args.name)
    if not 1 <= args.balancer <= state.balancers:
        _fail(f"expected --balancer from 1 to {state.balancers}, not {args.balancer}", 2)
    if args.json:
        print_json(tree(state, args.balancer))
    else:
        sys.stdout.write(configuration(state, args.balancer))
    return 0


def _write_configurations(topology: Topology, path: Path) -> list[str]:
    """One file per balancer: web.yaml, or web-1.yaml, web-2.yaml, …"""
    from testbed.topology_config import configuration

    state = topology.state
    assert state is not None
    written = []
    for k in range(1, state.balancers + 1):
        target = path if state.balancers == 1 else path.with_name(f"{path.stem}-{k}{path.suffix}")
        target.write_text(configuration(state, k))
        written.append(str(target))
    return written


def _list(args: argparse.Namespace) -> int:
    from controlplane.command import print_json
    from controlplane.table import print_table
    from testbed.topology_file import library

    found = [(name, _load(name)) for name in library()]
    if args.json:
        rows = [
            {
                "name": name,
                "title": file.title,
                "description": " ".join(file.description.split()),
                "servers": len(file.server_names()),
                "balancers": file.balancers,
            }
            for name, file in found
        ]
        print_json(rows)
    else:
        print_table(
            ["TOPOLOGY", ">SERVERS", ">BALANCERS", "WHAT IT IS"],
            [[name, str(len(file.server_names())), str(file.balancers), file.title] for name, file in found],
        )
    return 0


def _show(args: argparse.Namespace) -> int:
    from controlplane.command import print_json
    from testbed.topology_file import find

    file = _load(args.topology)
    if args.json:
        print_json(file.model_dump(mode="json"))
    else:
        sys.stdout.write(find(args.topology).read_text(encoding="utf-8"))
    return 0
