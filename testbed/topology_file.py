"""A topology's file: which servers there shall be, and what they may use. Found by name or path, and checked.

    title: Two small servers and a big one
    machine_share: 60%
    servers:
      - {name: small, count: 2, backend: apache, cpu: 1}
      - {name: big, backend: apache, mpm: event, cpu: 4}

What is wrong has its place: `mine.yaml:4:22: servers[0].bakend: unknown key (did you mean 'backend'?)`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError

from controlplane.config_errors import ConfigError, Problem, describe, did_you_mean, either, locate, nearest
from controlplane.config_values import duration, format_duration, shown
from controlplane.config_yaml import Document, read_yaml
from testbed import cgroups
from testbed.demand import parse_demand

LIBRARY = Path(__file__).parent / "topologies"
SERVERS_MAX = 240

Where = tuple[str | int, ...]

_seconds = PlainSerializer(format_duration, return_type=str)
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


def _share(value: object) -> float:
    """Return a share from 0 to 1, given as 60% or 0.6."""
    number = float("nan")
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value.strip())):
        number = float(match[1]) / 100
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    if not 0 < number <= 1:
        raise ValueError(f"expected a share of the machine above 0 and at most 100%, like 60%, not {shown(value)}")
    return number


def _period(value: object) -> float | None:
    return None if value == "auto" else duration(cgroups.QUOTA_LEAST_S, cgroups.PERIOD_LIMIT_S)(value)


def _turn(value: object) -> float:
    return 0.0 if value == "native" else duration(1e-9, 1e-3)(value) if _is_fit(value) else _nanoseconds(value)


def _is_fit(value: object) -> bool:
    return not (isinstance(value, str) and value.strip().endswith("ns"))


def _nanoseconds(value: object) -> float:
    text = str(value).strip().removesuffix("ns")
    try:
        seconds = float(text) * 1e-9
    except ValueError:
        raise ValueError(f"expected 'native' or a duration like 5ns or 0.01us, not {shown(value)}") from None
    if not 1e-10 <= seconds <= 1e-3:
        raise ValueError(f"expected at least 0.1ns and at most 1ms, not {value}")
    return seconds


def _demand(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a demand like exponential:40 (a mean in milliseconds), not {shown(value)}")
    parse_demand(value)
    return value


def _subnet(value: object) -> ipaddress.IPv4Network | None:
    if value == "auto":
        return None
    try:
        subnet = ipaddress.IPv4Network(str(value))
    except ValueError:
        subnet = None
    if subnet is None or subnet.prefixlen != 24 or not subnet.is_private:
        raise ValueError(f"expected 'auto' or a private /24 like 198.18.7.0/24, not {shown(value)}")
    return subnet


def _server_name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value) or len(value) > 40:
        raise ValueError(f"expected a name of up to 40 small letters, digits and '-', not {shown(value)}")
    return value


class Model(BaseModel):
    """Unknown keys are errors, nothing is converted silently, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


Cores = Annotated[float, Field(gt=0, le=4096, allow_inf_nan=False)]


class _Group(Model):
    """A group of equal servers."""

    name: Annotated[str, PlainValidator(_server_name)]
    count: int = Field(default=1, ge=1, le=SERVERS_MAX)
    cpu: Cores | None = None  # quota in cores

    def names(self) -> list[str]:
        return [self.name] if self.count == 1 else [f"{self.name}-{i}" for i in range(1, self.count + 1)]


class ApacheGroup(_Group):
    backend: Literal["apache"]
    mpm: Literal["prefork", "event"] = "prefork"
    workers: int = Field(default=32, ge=1, le=1024)
    backlog: int = Field(default=128, ge=1, le=65535)
    keepalive: Annotated[float, PlainValidator(duration(0.0, 86400.0)), _seconds] | None = None

    @property
    def keepalive_s(self) -> float:
        """With prefork a connection that idles holds a worker, so there it is off unless it is asked for."""
        if self.keepalive is not None:
            return self.keepalive
        return 0.0 if self.mpm == "prefork" else 60.0


class AiohttpGroup(_Group):
    backend: Literal["aiohttp"]
    workers: int = Field(default=1, ge=1, le=65535)
    speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    limit: int | None = Field(default=None, ge=0)
    burn: bool = False  # computes, instead of waiting by a timer


Group = Annotated[ApacheGroup | AiohttpGroup, Field(discriminator="backend")]


class Pages(Model):
    """What requests cost."""

    turn: Annotated[float, PlainValidator(_turn)] = 0.0  # of ?n=; 0: the loop's own
    demand: Annotated[str, PlainValidator(_demand)] = "fixed:0"
    size: int = Field(default=64, ge=0, le=64 << 20)
    wiki: Annotated[float, PlainValidator(duration(0.0, 60.0)), _seconds] = 0.010


class TopologyFile(Model):
    title: str = ""
    description: str = ""
    network: Literal["auto", "namespaces", "loopback"] = "auto"
    subnet: Annotated[ipaddress.IPv4Network | None, PlainValidator(_subnet)] = None
    period: Annotated[float | None, PlainValidator(_period)] = None
    machine_share: Annotated[float | None, PlainValidator(_share)] = None
    balancers: int = Field(default=1, ge=1, le=64)
    pages: Pages = Pages()
    servers: tuple[Group, ...] = Field(min_length=1)

    def server_names(self) -> list[str]:
        return [name for group in self.servers for name in group.names()]


def library() -> list[str]:
    """Return the names of the topologies that come with Vickrey."""
    return sorted(path.stem for path in LIBRARY.glob("*.yaml"))


def find(name: str) -> Path:
    """Return the file of a topology: a shipped one by its name, else a path. Raises ConfigError."""
    if name in library():
        return LIBRARY / f"{name}.yaml"
    path = Path(name)
    if path.exists() or os.sep in name or path.suffix in (".yaml", ".yml"):
        return path
    what = f"no topology is called so{did_you_mean(name, library())}; `vickrey testbed list` shows all"
    raise ConfigError([Problem(name, 0, 0, "", what)])


def load(name: str) -> TopologyFile:
    """Return a topology by name or path. Raises ConfigError with all that is wrong in it."""
    return validate(read_yaml(find(name), "'servers:'"))


def validate(document: Document) -> TopologyFile:
    """Return the topology of a document. Raises ConfigError with all that is wrong in it."""
    problems = list(document.problems)
    topology = None
    if not isinstance(document.root, dict):
        what = "expected a mapping with at least 'servers'"
        raise ConfigError([*problems, locate(document.file, document.positions, (), what)])
    try:
        topology = TopologyFile.model_validate(document.root)
    except ValidationError as errors:
        problems += _problems(document, errors)
    if topology is not None:
        problems += [locate(document.file, document.positions, path, what) for path, what in mistakes(topology)]
    if problems or topology is None:
        raise ConfigError(problems)
    return topology


def mistakes(topology: TopologyFile) -> Iterator[tuple[Where, str]]:
    """What is wrong though each value by itself is right: where, and what."""
    seen: dict[str, int] = {}
    for i, group in enumerate(topology.servers):
        for name in group.names():
            if name in seen:
                yield ("servers", i, "name"), f"server {name} is there already, in servers[{seen[name]}]"
            seen.setdefault(name, i)
    if len(seen) > SERVERS_MAX:
        yield ("servers",), f"expected at most {SERVERS_MAX} servers, not {len(seen)}"
    if topology.machine_share is not None and all(group.cpu is None for group in topology.servers):
        yield ("machine_share",), "there is no 'cpu' that it would scale: give the servers one"
    if topology.period is not None and topology.machine_share is None:
        for i, group in enumerate(topology.servers):
            if group.cpu is not None and group.cpu * topology.period < cgroups.QUOTA_LEAST_S:
                least = cgroups.QUOTA_LEAST_S / topology.period
                what = f"expected at least {least:g} cores with a period of {format_duration(topology.period)}"
                yield ("servers", i, "cpu"), f"{what} (the kernel hands out no less than 1ms), not {group.cpu:g}"
    least = cgroups.QUOTA_LEAST_S / cgroups.PERIOD_LIMIT_S
    for i, group in enumerate(topology.servers):
        if topology.period is None and topology.machine_share is None and group.cpu is not None and group.cpu < least:
            yield ("servers", i, "cpu"), f"expected at least {least:g} cores, the least that the kernel knows"


def _problems(document: Document, errors: ValidationError) -> Iterator[Problem]:
    complained = {problem.key for problem in document.problems}
    found = [(_path(error["loc"]), error) for error in errors.errors()]
    unknown = [path for path, error in found if error["type"] == "extra_forbidden"]
    for path, error in found:
        if error["type"] == "missing" and any(
            path[:-1] == other[:-1] and nearest(other[-1], [str(path[-1])]) for other in unknown
        ):
            continue  # it is there, misspelt
        if error["type"] == "too_short" and any(len(other) > 1 and other[:1] == path for other, _ in found):
            continue  # only because its elements are bad
        problem = locate(document.file, document.positions, path, _explain(error, path, document.root))
        if error["input"] is None and problem.key in complained:
            continue  # the reader has said what is wrong with this value
        yield problem


def _path(loc: tuple[int | str, ...]) -> Where:
    """Pydantic's location without the tag of the union, which stands in no file."""
    return (*loc[:2], *loc[3:]) if loc[:1] == ("servers",) and len(loc) > 2 else loc


def _explain(error: Any, path: Where, root: Any) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key" + did_you_mean(path[-1], _keys_at(path, root))
    if kind == "union_tag_not_found":
        if not isinstance(value, dict):
            return "expected a mapping with a 'backend'"
        near = nearest("backend", value)
        return "the key 'backend' is missing" + (f" (is '{near[0]}' meant for it?)" if near else "")
    if kind == "union_tag_invalid":
        kinds = ["apache", "aiohttp"]
        return f"expected the backend {either(kinds)}, not {shown(context['tag'])}{did_you_mean(context['tag'], kinds)}"
    if kind == "greater_than":
        return f"expected more than {context['gt']:g}, not {shown(value)}"
    return describe(error)


def _keys_at(path: Where, root: Any) -> list[str]:
    """The keys that may stand where this one does."""
    if path[0] == "pages" and len(path) > 1:
        return list(Pages.model_fields)
    if path[0] == "servers" and len(path) > 2:
        backend = root["servers"][path[1]].get("backend")
        return list((ApacheGroup if backend == "apache" else AiohttpGroup).model_fields)
    return list(TopologyFile.model_fields)
