"""Checks a document against the models, then what no single key can tell: names that clash, limits that do not fit."""

import os
import resource
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from controlplane import registry
from controlplane.config import WORKERS_MAX, Config, Policy, Service, Timeout
from controlplane.config_errors import ConfigError, Path, Problem, describe, did_you_mean, locate, nearest
from controlplane.config_values import Address, Resolver, format_duration
from controlplane.config_yaml import Document
from controlplane.deployment import options as deployment_options

MAXCONN_DEFAULT = 10_000
DESCRIPTORS_RESERVED = 64  # the processes' own: segments, pipes, admin connections, logs
DESCRIPTORS_PER_THREAD = 8

Found = Iterator[tuple[Path, str]]


def validate(document: Document, *, instance: str, strict: bool, resolve: Resolver) -> Config:
    """Return the configuration of a document. Raises ConfigError with all that is wrong in it."""
    cache: dict[str, str] = {}

    def resolve_once(host: str) -> str:
        if host not in cache:
            cache[host] = resolve(host)
        return cache[host]

    # Files that it names are beside it.
    context = {"resolve": resolve_once, "folder": os.path.dirname(os.path.abspath(document.file))}
    problems = list(document.problems)
    config = None
    try:
        config = Config.model_validate(document.root, context=context)
    except ValidationError as errors:
        found_within = {error["loc"][:n] for error in errors.errors() for n in range(len(error["loc"]))}
        meant = {(path[:-1], what) for path, what in _misspelt(errors)}
        paths = []
        for error in errors.errors():
            path = _path(error["loc"])
            paths.append(path)
            if error["type"] == "too_short" and error["loc"] in found_within:
                continue  # only because its elements are bad
            if error["type"] == "missing" and (path[:-1], path[-1]) in meant:
                continue  # it is there, misspelt
            if error["input"] is not None or not _has_problem(problems, document, path):
                what = _unknown_key(path) if error["type"] == "extra_forbidden" else describe(error)
                problems.append(locate(document.file, document.positions, path, what))
        config = _without(document.root, paths, context)
    if config is not None:
        found = [*_clashes(config), *_sense(config), *_policies(config, document.root)]
        if strict:
            found += _not_spelled_out(config, document.root)
        if not problems and not found:
            config, unfit = _fit_descriptors(config)
            found += unfit
        problems += [locate(document.file, document.positions, path, what) for path, what in found]
    if problems or config is None:
        raise ConfigError(problems)
    return config if config.instance else config.model_copy(update={"instance": instance})


def _path(loc: tuple[int | str, ...]) -> Path:
    """Return pydantic's location without its own marks ("[key]" for a bad key of a mapping)."""
    path = tuple(part for part in loc if part != "[key]")
    if path[:1] == ("service",) and len(path) > 3 and path[2] == "policy" and path[3] == "options":
        return (*path[:3], *path[4:])
    if path[:1] == ("service",) and path[2:] == ("listen", 0):
        return path[:3]
    return path


def _has_problem(problems: Iterable[Problem], document: Document, path: Path) -> bool:
    """Return whether the reader already complained of this value (it reads as nothing then)."""
    place = document.positions.get(path)
    key = locate(document.file, {}, path, "").key
    return place is not None and any(problem.key == key for problem in problems)


def _unknown_key(path: Path) -> str:
    """Return what to say of a key that the mapping around it does not have: the nearest it has, or where it belongs."""
    model = _model_at(path[:-1])
    own = _fields(model) if model else {}
    near = did_you_mean(path[-1], own)
    if near or not model:
        return "unknown key" + near
    within = {
        key: outer for outer, field in own.items() for inner in _models_in(field.annotation) for key in _fields(inner)
    }
    near = did_you_mean(path[-1], within)
    place = next((outer for key, outer in within.items() if f"'{key}'" in near), "")
    return "unknown key" + near + (f", a key of {place}" if place else "")


def _misspelt(errors: ValidationError) -> Iterator[tuple[Path, str]]:
    """Yield each unknown key's path, and the key that was meant by it where one is near."""
    for error in errors.errors():
        path = _path(error["loc"])
        if error["type"] == "extra_forbidden" and (model := _model_at(path[:-1])):
            for key in nearest(path[-1], _fields(model)):
                yield path, key


def _model_at(path: Path) -> type[BaseModel] | None:
    """Return the model of the mapping at a path."""
    model: type[BaseModel] = Config
    parts = list(path)
    if parts[:1] == ["service"]:
        if len(parts) < 2:
            return None
        model, parts = Service, parts[2:]
    for part in parts:
        if isinstance(part, str):
            inner = [m for key, f in _fields(model).items() if key == part for m in _models_in(f.annotation)]
            if not inner:
                return None
            model = inner[0]
    return model


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a model by the keys of the file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _without(root: Any, paths: Iterable[Path], context: dict[str, Any]) -> Config | None:
    """Return the configuration less the values at these paths, so that a bad key hides no other problem."""

    def copy(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: copy(item) for key, item in value.items()}
        return [copy(item) for item in value] if isinstance(value, tuple) else value

    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: frozen(item) for key, item in value.items()}
        return tuple(frozen(item) for item in value) if isinstance(value, list) else value

    tree = copy(root)
    for path in paths:
        node = tree
        for part in path[:-1]:
            if isinstance(node, dict):
                node = node.get(part)
            elif isinstance(node, list) and isinstance(part, int) and part < len(node):
                node = node[part]
        if isinstance(node, dict) and path:
            node.pop(path[-1], None)
    try:
        return Config.model_validate(frozen(tree), context=context)
    except ValidationError:
        return None


def _clashes(config: Config) -> Found:
    """Two of one kind where there may be one: server names and addresses in a service, listening addresses in all."""
    listeners: list[tuple[Path, Address]] = []
    for service_name, service in config.service.items():
        here: Path = ("service", service_name)
        names: dict[str, int] = {}
        addresses: dict[tuple[int, Any], int] = {}
        for i, server in enumerate(service.servers):
            at = (server.address.family, server.address.sockaddr)
            first, first_at = names.setdefault(server.name, i), addresses.setdefault(at, i)
            if first != i:
                yield (*here, "servers", i), f"a second server called '{server.name}': servers[{first}] has that name"
            elif first_at != i:
                what = f"a second server at {server.address}: servers[{first_at}] has that address"
                yield (*here, "servers", i), what
        prefixes: dict[str, int] = {}
        for i, route in enumerate(service.sla.routes):
            first = prefixes.setdefault(route.prefix, i)
            if first != i:
                yield (*here, "sla", "routes", i, "prefix"), f"routes[{first}] has this prefix already"
        several = len(service.listen) > 1
        listeners += [((*here, "listen", *([i] if several else [])), a) for i, a in enumerate(service.listen)]
    if config.admin.listen is not None:
        listeners.append((("admin", "listen"), config.admin.listen))
    for i, (path, address) in enumerate(listeners):
        for other_path, other in listeners[:i]:
            if _overlap(address, other):
                where = ".".join(str(part) for part in other_path)
                yield path, f"{address} is already listened on by {where}" + ("" if address == other else f" ({other})")
                break
    for service_name, service in config.service.items():
        for i, server in enumerate(service.servers):
            for listen in service.listen:
                if not listen.is_unix and listen.sockaddr[:2] == server.address.sockaddr[:2]:
                    yield ("service", service_name, "servers", i), f"{listen} is where this service itself listens"


def _overlap(a: Address, b: Address) -> bool:
    if a.family != b.family or a.is_unix:
        return a.family == b.family and a.path == b.path
    if a.port != b.port or a.port == 0:
        return False
    return a.host == b.host or any(host in ("0.0.0.0", "::") for host in (a.host, b.host))


def _sense(config: Config) -> Found:
    """Values that are fine alone and make no sense together."""
    for name, service in config.service.items():
        here: Path = ("service", name)
        if service.stale_after < 2 * service.interval:
            least = format_duration(2 * service.interval)
            yield (
                (*here, "stale_after"),
                f"expected at least twice the interval ({least})",
            )
        threads = service.workers * len(service.listen)
        if threads > WORKERS_MAX:
            what = f"{service.workers} workers for each of {len(service.listen)} addresses are {threads} threads"
            yield (*here, "workers"), f"{what}: expected at most {WORKERS_MAX}"
        if all(server.backup for server in service.servers):
            yield (*here, "servers"), "every server is a backup: there is nothing that they could stand in for"
        if all(server.weight == 0 for server in service.servers):
            yield (*here, "servers"), "every weight is 0: no server would get a flow"
        if service.mode == "tcp":
            yield from _needs_heads(here, service)
        elif service.sla.header and service.sla.trust == "forwarded" and not service.forwarded.trust:
            what = f"'{service.sla.header}' is believed of the networks in forwarded.trust only, and there are none"
            yield (*here, "sla", "header"), f"{what} (sla.trust: any believes every client)"


def _needs_heads(here: Path, service: Service) -> Found:
    """What a service of mode tcp cannot have."""
    unread = "mode 'tcp' does not read HTTP heads"
    if service.forwarded.trust:
        yield (*here, "forwarded"), f"{unread}: there is nothing to trust"
    if service.sla.header:
        yield (*here, "sla", "header"), f"{unread}: no header says a class"
    if service.sla.routes:
        yield (*here, "sla", "routes"), f"{unread}: there are no routes"
    if service.reserve == "learned":
        yield (*here, "reserve"), "mode 'tcp' holds no connection back: 'learned' needs mode 'http'"


def _policies(config: Config, root: Any) -> Found:
    """Options that the policy does not take, or refuses."""
    for name, service in config.service.items():
        here: Path = ("service", name, "policy")
        policy = service.policy
        try:
            known = registry.options(policy.name)
        except Exception as error:  # whatever a third party's module raises when it is imported
            yield here, f"policy '{policy.name}' cannot be loaded: {type(error).__name__}: {error}"
            continue
        unknown = [option for option in policy.options if option not in {*known, *registry.CONTROLLER_OPTIONS}]
        for option in unknown:
            may = [*known, *registry.CONTROLLER_OPTIONS, *(key for key in Policy.model_fields if key != "options")]
            hint = did_you_mean(option, may) or f" (it takes: {', '.join(known) or 'none'})"
            yield (*here, option), f"unknown option of policy '{policy.name}'{hint}"
        if not unknown:
            try:
                registry.create(policy.spec())
                _check_incumbent(policy.options)
            except Exception as error:  # the same: their constructor, our one line
                at = getattr(error.__cause__, "option", "")
                yield (
                    (*here, at) if at in policy.options else here,
                    " ".join(str(error).split()) or type(error).__name__,
                )


def _check_incumbent(given: dict[str, Any]) -> None:
    """Raise ValueError when a policy that begins with the file is to share with, or be compared to, nobody that is."""
    if given.get("incumbent") not in (None, deployment_options.FALLBACK):
        registry.create(given["incumbent"])
    elif given.get("switchback"):
        raise ValueError("switchback: a policy that begins with the file needs an incumbent: {incumbent: NAME}")


def _not_spelled_out(config: Config, root: Any) -> Found:
    for name in config.service:
        given = root["service"][name].get("timeout", {})
        for key in _fields(Timeout):
            if key not in given:
                yield ("service", name, "timeout", key), "not given, and --strict wants every timeout spelled out"


def descriptors_needed(service: Service, maxconn: int) -> int:
    """Return the descriptors that a service needs at most: two for each client connection, and its threads' own."""
    return 2 * maxconn + service.workers * len(service.listen) * DESCRIPTORS_PER_THREAD + len(service.servers)


def _fit_descriptors(config: Config) -> tuple[Config, list[tuple[Path, str]]]:
    """Fill in each maxconn that was not given, and refuse those that the limit on open files cannot serve."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        limit = 1 << 30
    given = {name: service for name, service in config.service.items() if service.maxconn}
    free = limit - DESCRIPTORS_RESERVED - sum(descriptors_needed(s, s.maxconn) for s in config.service.values())
    open_ended = len(config.service) - len(given)
    share = min(MAXCONN_DEFAULT, free // (2 * open_ended)) if open_ended else 0
    if free < 0 or (open_ended and share < 1):
        need = limit - min(free, 0) + (2 * open_ended if free >= 0 else 0)
        name = max(config.service, key=lambda name: config.service[name].maxconn)
        what = f"needs about {need} descriptors, two for each connection, and the limit on open files is {limit}"
        return config, [(("service", name, "maxconn"), f"{what} (raise `ulimit -n`, or lower maxconn)")]
    services = {
        name: service if service.maxconn else service.model_copy(update={"maxconn": share})
        for name, service in config.service.items()
    }
    return config.model_copy(update={"service": services}), []
