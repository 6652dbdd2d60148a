"""The statistics as HAProxy's `stats` page gives them in CSV, so that exporters and scripts made for it work unchanged.

Columns and order are HAProxy 2.6's ("9.1. CSV format" of its management guide); what has no meaning here stays empty,
as it does there. Times are averages over the recent window, milliseconds.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable
from typing import Any

from controlplane.counters import OUTCOME_NAMES, Snapshot
from controlplane.servers import Server

HEADER = """
    pxname svname qcur qmax scur smax slim stot bin bout dreq dresp ereq econ eresp wretr wredis status weight act bck
    chkfail chkdown lastchg downtime qlimit pid iid sid throttle lbtot tracked type rate rate_lim rate_max
    check_status check_code check_duration hrsp_1xx hrsp_2xx hrsp_3xx hrsp_4xx hrsp_5xx hrsp_other hanafail req_rate
    req_rate_max req_tot cli_abrt srv_abrt comp_in comp_out comp_byp comp_rsp lastsess last_chk last_agt qtime ctime
    rtime ttime agent_status agent_code agent_duration check_desc agent_desc check_rise check_fall check_health
    agent_rise agent_fall agent_health addr cookie mode algo conn_rate conn_rate_max conn_tot intercepted dcon dses
"""
COLUMNS = HEADER.split()

_FRONTEND, _BACKEND, _SERVER = 0, 1, 2
_CLASSES = ("other", "1xx", "2xx", "3xx", "4xx", "5xx")


def row_status(server: Server) -> str:
    """Return a server's state in HAProxy's words."""
    if server.state == "maint":
        return "MAINT"
    if not server.up:
        return "DOWN"
    if server.ejected:
        return "NOLB"
    return "DRAIN" if server.shown_state == "drain" or server.weight == 0 else "UP"


def table(services: Iterable[tuple[str, dict[str, Any], Snapshot, list[Server]]]) -> str:
    """Return the CSV. Each service: name, its status document, its counters and its servers."""
    out = io.StringIO()
    out.write("# " + ",".join(COLUMNS) + ",\n")
    writer = csv.writer(out, lineterminator=",\n")
    for number, (name, status, snapshot, servers) in enumerate(services, start=2):
        documents = {document["slot"]: document for document in status["servers"]}
        common = {"pxname": name, "pid": 1, "iid": number, "mode": status["mode"]}
        for row in (
            _frontend(status, snapshot),
            *(_server(server, documents[server.slot], snapshot, sid) for sid, server in enumerate(servers, start=1)),
            _backend(status, snapshot, servers),
        ):
            whole = {**common, **row}
            writer.writerow([whole.get(column, "") for column in COLUMNS])
    return out.getvalue()


def _frontend(status: dict[str, Any], snapshot: Snapshot) -> dict[str, Any]:
    return {
        "svname": "FRONTEND",
        "scur": status["connections"],
        "stot": snapshot.total("connections_total"),
        "bin": snapshot.total("bytes_in"),
        "bout": snapshot.total("bytes_out"),
        "dreq": 0,
        "dresp": 0,
        "ereq": snapshot.total("requests_bad"),
        "status": "OPEN",
        "type": _FRONTEND,
        "req_rate": round(status["rps"]),
        "req_tot": snapshot.total("requests_total"),
        "conn_tot": snapshot.total("connections_total"),
        "dcon": snapshot.total("connections_refused"),
        **_responses(snapshot),
    }


def _backend(status: dict[str, Any], snapshot: Snapshot, servers: list[Server]) -> dict[str, Any]:
    usable = [server for server in servers if server.takes_flows]
    return {
        "svname": "BACKEND",
        "qcur": status["queued"],
        "scur": status["in_flight"],
        "stot": int(snapshot.flows.sum()),
        "bin": snapshot.total("bytes_in"),
        "bout": snapshot.total("bytes_out"),
        "wretr": snapshot.total("retries"),
        "status": "UP" if usable else "DOWN",
        "weight": sum(server.weight for server in usable),
        "act": sum(not server.backup for server in usable),
        "bck": sum(server.backup for server in usable),
        "lbtot": snapshot.total("auctions"),
        "type": _BACKEND,
        "rate": round(status["rps"]),
        "req_tot": snapshot.total("requests_total"),
        "qtime": _whole(_mean_wait_ms(status)),
        "ttime": _whole(status["fct"]["mean_ms"]),
        "algo": status["policy"]["name"],
        **_responses(snapshot),
    }


def _server(server: Server, document: dict[str, Any], snapshot: Snapshot, sid: int) -> dict[str, Any]:
    outcome = dict(zip(OUTCOME_NAMES, (int(count) for count in snapshot.outcomes[server.slot]), strict=True))
    words = server.last_check.split(" ", 1)
    code = words[1] if len(words) > 1 and words[1].isdigit() else ""
    return {
        "svname": server.name,
        "qcur": 0,
        "scur": document["in_flight"],
        "slim": server.maxconn or "",
        "stot": document["flows_total"],
        "bin": document["bytes_in"],
        "bout": document["bytes_out"],
        "econ": outcome["connect_failed"],
        "eresp": outcome["server_abort"] + outcome["server_timeout"],
        "wretr": document["retries"],
        "wredis": document["retries"],
        "status": row_status(server),
        "weight": server.weight,
        "act": int(not server.backup),
        "bck": int(server.backup),
        "chkfail": server.checks_failed_total,
        "chkdown": server.down_count,
        "lastchg": int(time.monotonic() - server.changed),
        "sid": sid,
        "lbtot": document["flows_total"],
        "type": _SERVER,
        "rate": round(document["rps"]),
        "check_status": words[0],
        "check_code": code,
        "check_duration": round(server.last_check_s * 1e3) if server.last_check else "",
        "hrsp_5xx": outcome["server_5xx"],
        "cli_abrt": outcome["client_abort"],
        "srv_abrt": outcome["server_abort"],
        "last_chk": server.last_check,
        "ttime": _whole(document["fct_mean_ms"]),
        "addr": server.address.text,
    }


def _responses(snapshot: Snapshot) -> dict[str, int]:
    return {f"hrsp_{name}": snapshot.total("responses", i) for i, name in enumerate(_CLASSES)}


def _mean_wait_ms(status: dict[str, Any]) -> float | None:
    """Return the mean time in the queue over all flows, those that did not wait among them."""
    classes = status["classes"].values()
    flows = sum(c["rps"] for c in classes)
    waits = sum(c["rps"] * c["waited"] * (c["wait_mean_ms"] or 0.0) for c in classes)
    return waits / flows if flows else None


def _whole(milliseconds: float | None) -> int | str:
    return "" if milliseconds is None else round(milliseconds)
