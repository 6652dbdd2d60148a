"""The configuration: what may stand in the file, its defaults, and how to read it.

    config = load("web.yaml")               # or from_arguments(listen=[":8080"], servers=["app:9001"])
    config.service["web"].timeout.connect   # seconds: every duration here is a float of seconds
    config.service["web"].listen[0].sockaddr

A Config is frozen, its defaults are filled in and its host names resolved. Keys are spelled as in the file, with
'_' for '-' (`http-request` is `http_request`). Whatever is wrong is raised as one ConfigError, a line for each problem.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from controlplane import registry
from controlplane.config_errors import ConfigError, did_you_mean, either
from controlplane.config_values import (
    Address,
    Network,
    Resolver,
    StatusRanges,
    duration,
    format_duration,
    format_status,
    parse_coalition,
    parse_header_name,
    parse_listen,
    parse_name,
    parse_network,
    parse_prefix,
    parse_server_address,
    parse_server_name,
    parse_status,
    resolve_host,
    server_name_from,
    shown,
)

__all__ = ["Address", "Config", "ConfigError", "Server", "Service", "from_arguments", "load"]

SERVERS_MAX = 4096  # SERVERS_LIMIT of the segment
WORKERS_MAX = 64  # WORKERS_LIMIT
IN_FLIGHT_MAX = 65535
TRUSTED_MAX = 16
ROUTES_MAX = 32
LOAD_MOST = 1e6
OFF = ("off", False)

_seconds = PlainSerializer(format_duration, return_type=str)
Duration = Annotated[float, PlainValidator(duration(0.001)), _seconds]
DurationOrZero = Annotated[float, PlainValidator(duration(0.0)), _seconds]
# A whole number is written as one.
Amount = Annotated[
    float,
    Field(ge=0, le=LOAD_MOST, allow_inf_nan=False),
    PlainSerializer(lambda value: int(value) if value == int(value) else value, return_type=float | int),
]
Interval = Annotated[float, PlainValidator(duration(0.01, 60.0)), _seconds]
Percent = Annotated[int, Field(ge=0, le=100)]


def _resolver(info: ValidationInfo) -> Resolver:
    resolve: Resolver = (info.context or {}).get("resolve", resolve_host)
    return resolve


def _listen(value: object, info: ValidationInfo) -> Address:
    return value if isinstance(value, Address) else parse_listen(value, _resolver(info))


def _server_address(value: object, info: ValidationInfo) -> Address:
    return value if isinstance(value, Address) else parse_server_address(value, _resolver(info))


_text = PlainSerializer(str, return_type=str)
ListenAddress = Annotated[Address, PlainValidator(_listen), _text]
ServerAddress = Annotated[Address, PlainValidator(_server_address), _text]
TrustedNetwork = Annotated[Network, PlainValidator(parse_network), _text]
Name = Annotated[str, PlainValidator(parse_name)]


class Model(BaseModel):
    """Unknown keys are errors, nothing is converted silently, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class Server(Model):
    address: ServerAddress
    name: Annotated[str, PlainValidator(parse_server_name)] = ""  # default: the address
    weight: int = Field(default=1, ge=0, le=256)
    maxconn: int = Field(default=0, ge=0, le=IN_FLIGHT_MAX)  # flows in flight; 0: no limit
    backup: bool = False
    state: Literal["ready", "drain", "maint"] = "ready"
    # policy auction: load in flight at which it counts as full, 0: learned; and who takes over from whom, 0: nobody
    capacity: Amount = 0
    coalition: Annotated[str | int, PlainValidator(parse_coalition)] = 0

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return {"address": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _name_from_address(self) -> "Server":
        if not self.name:
            object.__setattr__(self, "name", server_name_from(self.address))
        return self


class Policy(Model):
    """Which policy, and its options, which stand beside `name` in the file."""

    name: str = "adaptive"
    mode: Literal["enforce", "shadow"] = "enforce"
    enforcing: Percent = 100  # share of the flows that follows it; the others follow the fallback
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("name"), str):
            value = {**value, **registry.spec_of(value["name"])}
            value = registry.absolute(value, (info.context or {}).get("folder", ""))
        own = {key: value[key] for key in ("name", "mode", "enforcing") if key in value}
        return {**own, "options": {key: value[key] for key in value if key not in own}}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        canonical = registry.canonical(name)
        if canonical not in registry.BUILT_IN and canonical not in registry.third_party():
            known = [*registry.names(), *registry.ALIASES]
            raise ValueError(f"no policy is called {shown(name)}{did_you_mean(name, known)}")
        return canonical

    def spec(self) -> dict[str, Any]:
        """Return what the controller is sent: the options beside the name."""
        return {"name": self.name, "mode": self.mode, "enforcing": self.enforcing, **self.options}

    @model_serializer
    def _as_in_file(self) -> dict[str, Any]:
        return self.spec()


class Health(Model):
    """Active checks. With a path they are HTTP requests, else connections."""

    type: Literal["http", "tcp"] = "tcp"
    path: str = ""  # http only
    inter: Duration = 2.0
    fall: int = Field(default=3, ge=1, le=1000)
    rise: int = Field(default=2, ge=1, le=1000)
    status: Annotated[StatusRanges, PlainValidator(parse_status), PlainSerializer(format_status, return_type=str)] = (
        (200, 399),
    )
    timeout: Duration = 0.0  # default: inter, at most 1s

    @model_validator(mode="before")
    @classmethod
    def _http_by_path(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        if "type" not in value and ("path" in value or "status" in value):
            return {"type": "http", **value}
        if value.get("type") == "tcp" and ("path" in value or "status" in value):
            raise ValueError("a check of type 'tcp' has neither path nor status (did you mean type: http?)")
        return value

    @field_validator("path")
    @classmethod
    def _origin_form(cls, path: str) -> str:
        if not re.fullmatch(r"/[!-~]{0,1023}", path):
            raise ValueError(f"expected a path that begins with '/', of printable ASCII, not {shown(path)}")
        return path

    @model_validator(mode="after")
    def _fill(self) -> "Health":
        if self.type == "http" and not self.path:
            object.__setattr__(self, "path", "/")
        if not self.timeout:
            object.__setattr__(self, "timeout", min(self.inter, 1.0))
        return self

    @model_serializer(mode="wrap")
    def _only_what_holds(self, handler: Any) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return values if self.type == "http" else {k: v for k, v in values.items() if k not in ("path", "status")}

    def accepts(self, status: int) -> bool:
        """Return whether an answer with this status counts as healthy."""
        return any(low <= status <= high for low, high in self.status)


class Outlier(Model):
    """Passive checks: a server that fails in live traffic is ejected for a while. Names and defaults are Envoy's."""

    consecutive_5xx: int = Field(default=5, ge=0, le=1_000_000)  # 0: not judged by this
    consecutive_gateway_failure: int = Field(default=5, ge=0, le=1_000_000)
    interval: Interval = 10.0
    base_ejection_time: Duration = 30.0
    max_ejection_time: Duration = 300.0
    max_ejection_percent: Percent = 10
    enforcing: Percent = 100


class Timeout(Model):
    http_request: Duration = Field(default=5.0, alias="http-request")
    http_keep_alive: Duration = Field(default=60.0, alias="http-keep-alive")
    connect: Duration = 1.0
    client: Duration = 30.0
    server: Duration = 30.0
    queue: Duration = 10.0
    tunnel: Duration = 3600.0


class Forwarded(Model):
    """Clients in these networks are proxies: X-Forwarded-* is appended to for them, replaced for all others."""

    trust: tuple[Annotated[Network, PlainValidator(parse_network), _text], ...] = Field(
        default=(), max_length=TRUSTED_MAX
    )


SlaClass = Literal["gold", "silver", "bronze"]


class Route(Model):
    """Requests whose target begins with prefix; of several that fit, the longest counts."""

    prefix: Annotated[str, PlainValidator(parse_prefix)]
    sla_class: SlaClass | None = Field(default=None, alias="class")  # None: the default class
    load: Amount = 0  # in mean flows; 0: learned

    @model_serializer(mode="wrap")
    def _only_what_holds(self, handler: Any) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


class Sla(Model):
    """How much a request's delay matters: what the header says, else its route's class, else the default."""

    header: Annotated[str, PlainValidator(parse_header_name)] = ""  # "": none is looked at
    trust: Literal["forwarded", "any"] = "forwarded"  # whose header is believed: forwarded.trust's, or every client's
    default: SlaClass = "silver"
    routes: tuple[Route, ...] = Field(default=(), max_length=ROUTES_MAX)


class Log(Model):
    access: str = "off"  # "off", "stdout" or a path
    format: Literal["json", "combined"] = "json"

    @field_validator("access", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value

    @field_validator("access")
    @classmethod
    def _path(cls, value: str) -> str:
        if not value or "\0" in value or value.endswith("/"):
            raise ValueError(f"expected 'off', 'stdout' or the path of a file, not {shown(value)}")
        return value


def _or_off(value: object) -> object:
    return None if value is False or value == "off" else value


def _release(later: str, reason: str) -> BeforeValidator:
    def check(value: object) -> object:
        if value == later:
            raise ValueError(f"'{later}' is not in this release: {reason}")
        return value

    return BeforeValidator(check)


def _one_per_core(value: int) -> int:
    return value or min(len(os.sched_getaffinity(0)), WORKERS_MAX)


class Service(Model):
    listen: tuple[ListenAddress, ...] = Field(min_length=1, max_length=64)
    engine: Annotated[Literal["socket"], _release("packet", "the engine is 'socket'")] = "socket"
    mode: Literal["http", "tcp"] = "http"
    workers: int = Field(default=1, ge=0, le=WORKERS_MAX)  # 0 in the file: one per core
    io: Literal["auto", "io_uring", "epoll"] = "auto"
    policy: Policy = Policy()
    objective: Literal["mean", "tail"] = "mean"
    interval: Interval = 0.2
    fallback: str = "lsq"
    stale_after: Annotated[float, PlainValidator(duration(0.05, 3600.0)), _seconds] = 3.0
    balancers: int = Field(default=1, ge=1, le=1024)
    # learned: flows wait for a cheaper server (late binding); auto: where the policy does so by itself, in mode http
    reserve: Literal["auto", "off", "classic", "learned"] = "auto"
    servers: tuple[Server, ...] = Field(min_length=1, max_length=SERVERS_MAX)
    maxconn: int = Field(default=0, ge=0, le=1_000_000)  # client connections; 0 in the file: what the descriptors allow
    queue: int = Field(default=1024, ge=0, le=1_000_000)  # flows that wait for a server; 0: answer 503 at once
    health: Annotated[Health | None, BeforeValidator(_or_off)] = Health()  # None: off
    outlier: Annotated[Outlier | None, BeforeValidator(_or_off)] = Outlier()  # None: off
    slowstart: DurationOrZero = 0.0  # 0: none
    retries: int = Field(default=3, ge=0, le=10)
    retry_budget: Percent = 20  # percent of the flows lately
    timeout: Timeout = Timeout()
    drain_timeout: DurationOrZero = 30.0
    forwarded: Forwarded = Forwarded()
    sla: Sla = Sla()
    log: Log = Log()

    @field_validator("listen", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return value if isinstance(value, tuple) else (value,)

    @field_validator("fallback")
    @classmethod
    def _needs_no_controller(cls, name: str) -> str:
        canonical = registry.canonical(name)
        if canonical not in FALLBACKS:
            what = f"expected a rule that needs no controller: {either(FALLBACKS)}, not {shown(name)}"
            raise ValueError(what + did_you_mean(name, FALLBACKS))
        return canonical

    @field_validator("workers")
    @classmethod
    def _workers(cls, value: int) -> int:
        return _one_per_core(value)

    @field_validator("reserve", mode="before")
    @classmethod
    def _reserve(cls, value: object) -> object:
        return "off" if value is False else value

    @field_serializer("health", "outlier", mode="wrap")
    def _off_in_words(self, value: Any, handler: Any) -> Any:
        return "off" if value is None else handler(value)


FALLBACKS = ("lsq", "sed", "gsed", "p2c", "wrr")


class Admin(Model):
    listen: Annotated[Address | None, BeforeValidator(_or_off)] = None
    audit: str = "off"  # "off" or a path: a JSON line for every change

    @model_validator(mode="before")
    @classmethod
    def _default(cls, value: object) -> object:
        return {"listen": ADMIN_DEFAULT, **value} if isinstance(value, dict) else value

    @field_validator("listen", mode="before")
    @classmethod
    def _address(cls, value: object, info: ValidationInfo) -> object:
        return None if _or_off(value) is None else _listen(value, info)

    @field_validator("audit", mode="before")
    @classmethod
    def _no_audit(cls, value: object) -> object:
        return "off" if value is False else value

    @field_validator("audit")
    @classmethod
    def _path(cls, value: str) -> str:
        if not value or "\0" in value or value.endswith("/"):
            raise ValueError(f"expected 'off' or the path of a file, not {shown(value)}")
        return value

    @field_serializer("listen")
    def _off_in_words(self, value: Address | None) -> str:
        return "off" if value is None else str(value)


ADMIN_DEFAULT = "127.0.0.1:9900"


class Config(Model):
    """The whole file. `instance` tells apart the balancers of one machine: it is a part of the segments' names."""

    instance: Name = ""
    admin: Admin = Field(default_factory=lambda: Admin.model_validate({}))
    service: dict[Name, Service] = Field(min_length=1, max_length=256)

    def as_tree(self) -> dict[str, Any]:
        """Return the effective configuration as it would stand in a file; reading that gives an equal Config."""
        return self.model_dump(mode="json", by_alias=True)


def _instance_from(source: str, text: str) -> str:
    """Return a name for a balancer that was given none: the same at every start of the same file, of no other."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", source).strip("-_")[:32] or "vickrey"
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def load(path: str | os.PathLike[str], *, strict: bool = False, resolve: Resolver = resolve_host) -> Config:
    """Read and check a file. strict: every timeout must be spelled out. Raises ConfigError."""
    from controlplane.config_checks import validate
    from controlplane.config_yaml import read_yaml

    document = read_yaml(path)
    absolute = Path(path).resolve()
    instance = _instance_from(absolute.stem, os.fspath(absolute))
    return validate(document, instance=instance, strict=strict, resolve=resolve)


def from_arguments(
    *,
    listen: Sequence[str],
    servers: Sequence[str | Mapping[str, Any]],
    admin: str = ADMIN_DEFAULT,
    name: str = "web",
    resolve: Resolver = resolve_host,
    **service: Any,
) -> Config:
    """Make a configuration of one service without a file; service: its other keys, as in a file. Raises ConfigError."""
    from controlplane.config_checks import validate
    from controlplane.config_yaml import Document

    document = Document("command line")
    keys = {key: value for key, value in service.items() if value is not None}
    document.root = {
        "admin": {"listen": admin},
        "service": {name: {"listen": tuple(listen), "servers": tuple(servers), **keys}},
    }
    return validate(document, instance=_instance_from("cli", "\n".join(sorted(listen))), strict=False, resolve=resolve)
