"""Take a changed configuration file while the balancer runs: all of it, or none.

What can be refused is tried first and in this order: reading and checking the file, what cannot change without a
restart, room for the servers, the access log's file, the policies (the controller is asked; what it took before a
later one was refused is taken back). Only then are servers, weights, limits and timeouts changed, which cannot fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane import settings
from controlplane.config import Config, load
from controlplane.config_errors import ConfigError, Problem, locate
from controlplane.config_yaml import read_yaml
from controlplane.processes import Controller, ControllerError, ControllerUnavailableError

if TYPE_CHECKING:
    from controlplane.service import LiveService


@dataclass(frozen=True)
class ReloadOutcome:
    """How a reload went. good: everything was taken; else nothing was, and problems say why."""

    good: bool
    changes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    config: Config | None = field(default=None, repr=False)
    restart_controller: bool = False

    def document(self) -> dict[str, Any]:
        if self.good:
            return {"ok": True, "changes": list(self.changes)}
        return {
            "ok": False,
            "error": "\n".join(str(problem) for problem in self.problems),
            "problems": ConfigError(self.problems).as_json(),
        }


async def reload(
    path: Path, old: Config, services: Mapping[str, LiveService], controller: Controller | None
) -> ReloadOutcome:
    """Read the file again and take it."""
    try:
        # In a thread: reading it resolves host names.
        new = await asyncio.to_thread(load, path)
    except ConfigError as error:
        return ReloadOutcome(False, problems=tuple(error.problems))
    except OSError as error:
        return ReloadOutcome(False, problems=(Problem(str(path), 0, 0, "", error.strerror or str(error)),))
    refused = [*settings.refusals(old, new), *_no_room(new, services)]
    if not refused:
        refused = await _swap_policies(old, new, services, controller)
    if refused:
        positions = (await asyncio.to_thread(read_yaml, path)).positions
        return ReloadOutcome(False, problems=tuple(locate(str(path), positions, where, why) for where, why in refused))
    changes = []
    restart_controller = False
    for name, service in services.items():
        config, before = new.service[name], service.config
        if config.policy != before.policy:
            changes.append(f"{name}: policy {config.policy.name}")
        restart_controller |= any(getattr(config, k) != getattr(before, k) for k in settings.CONTROLLER_KEYS)
        changes += [f"{name}: {change}" for change in service.reconfigure(config)]
    return ReloadOutcome(True, tuple(changes), config=new, restart_controller=restart_controller)


Refusals = list[tuple[tuple[str, ...], str]]


def _no_room(new: Config, services: Mapping[str, LiveService]) -> Refusals:
    found: Refusals = []
    for name, service in services.items():
        if name not in new.service:
            continue
        config = new.service[name]
        if not service.table.room_for(config.servers):
            why = f"there is room for {service.table.limit} servers, those on their way out among them, until a restart"
            found.append((("service", name, "servers"), why))
        if why := service.can_log(config):
            found.append((("service", name, "log", "access"), why))
    return found


async def _swap_policies(
    old: Config, new: Config, services: Mapping[str, LiveService], controller: Controller | None
) -> Refusals:
    """Swap the policies that the file changed; one set by hand since stays when the file's is the same as before."""
    swapped: list[tuple[LiveService, dict[str, Any]]] = []
    for name, service in services.items():
        spec = new.service[name].policy.spec()
        if new.service[name].policy == old.service[name].policy or spec == service.policy:
            continue
        before = service.policy
        try:
            if controller is not None:
                await controller.command(cmd="policy", service=name, policy=spec, who="reload")
        except ControllerUnavailableError:
            service.note_policy(spec, "set")  # the next controller is told at its start
        except ControllerError as error:
            for done, policy in swapped:
                await _take_back(controller, done, policy)
            return [(("service", name, "policy"), str(error))]
        swapped.append((service, before))
    return []


async def _take_back(controller: Controller | None, service: LiveService, policy: dict[str, Any]) -> None:
    try:
        if controller is not None:
            await controller.command(cmd="policy", service=service.name, policy=policy, who="reload")
    except ControllerError:
        service.note_policy(policy, "rolled back")
