"""Tunes the heuristics: for each family of scenarios the options with the least mean completion time.

Chosen on seeds of their own and shorter runs, by the mean of log(mean completion time) over the family's scenarios and
seeds, and evaluated on others. What was found is kept: for the shipped suites in tuned.yaml beside this file, for
others in the user's cache, under a digest of all that it depends on but the code.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from controlplane.config_errors import ConfigError
from controlplane.config_yaml import read_yaml
from controlplane.evaluation.measure import Failure, Outcomes, Progress, Task, perform_all
from controlplane.evaluation.rivals import Options, Rival
from controlplane.evaluation.suite import TUNING_LENGTH, Entry, digest, plain
from controlplane.simulation.scenario import Policy

SHIPPED = Path(__file__).parent / "tuned.yaml"

# By family and rival.
Tuned = dict[tuple[str, str], Options]


def cache_file() -> Path:
    """Return where the user's cache is (XDG base directories)."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "vickrey" / "tuned.yaml"


def key_of(entries: Sequence[Entry], seeds: Sequence[int], rival: Rival) -> str:
    grid = [list(options.items()) for options in rival.grid]
    return digest(rival.name, grid, [plain(entry.scenario) for entry in entries], list(seeds), TUNING_LENGTH)


def tune(
    families: Mapping[str, Sequence[Entry]],
    seeds: Sequence[int],
    rivals: Sequence[Rival],
    workers: int,
    progress: Progress,
    *,
    again: bool = False,
) -> Tuned:
    """Return the best options of every rival that has any, for every family of scenarios.

    again: nothing is taken from a cache. Raises ValueError where a rival has no figures at all.
    """
    cached = {} if again else read_cache()
    found: Tuned = {}
    wanted: dict[tuple[str, str], Sequence[Entry]] = {}
    for family, entries in families.items():
        for rival in rivals:
            if not rival.grid:
                continue
            key = key_of(entries, seeds, rival)
            if key in cached and cached[key]["options"] in rival.grid:
                found[family, rival.name] = cached[key]["options"]
            else:
                wanted[family, rival.name] = entries
    by_name = {rival.name: rival for rival in rivals}
    tasks = [
        Task(entry.shortened(TUNING_LENGTH), _policy(by_name[name], options), seed)
        for (_, name), entries in wanted.items()
        for entry in entries
        for options in by_name[name].grid
        for seed in seeds
    ]
    if not tasks:
        return found
    outcomes = perform_all(tasks, workers, progress)
    fresh = {}
    for (family, name), entries in wanted.items():
        rival = by_name[name]
        scores = [score(outcomes, entries, _policy(rival, options), seeds) for options in rival.grid]
        if math.isinf(min(scores)):
            raise ValueError(
                f"{name} cannot be tuned in {family}: {_first_failure(outcomes) or 'no flow was completed'}"
            )
        best = rival.grid[min(range(len(scores)), key=scores.__getitem__)]
        found[family, name] = best
        fresh[key_of(entries, seeds, rival)] = {"family": family, "rival": name, "options": best}
    _remember(fresh)
    return found


def _policy(rival: Rival, options: Options) -> Policy:
    # Its title tells the options apart; it has no label.
    return Policy.model_validate({"name": rival.name, **options})


def score(outcomes: Outcomes, entries: Sequence[Entry], policy: Policy, seeds: Sequence[int]) -> float:
    """Return the mean of log(mean completion time) over scenarios and seeds; infinite where a run has none."""
    total = 0.0
    for entry in entries:
        for seed in seeds:
            run = outcomes[entry.name, policy.title, seed]
            mean = math.nan if isinstance(run, Failure) else run.figures["mean"]
            if not mean > 0:
                return math.inf
            total += math.log(mean)
    return total / (len(entries) * len(seeds))


def _first_failure(outcomes: Outcomes) -> str:
    return next((run.error for run in outcomes.values() if isinstance(run, Failure)), "")


# The cache: a line an entry, key first.


def read_cache() -> dict[str, dict[str, Any]]:
    """Return what was tuned before; a cache that cannot be read is none."""
    found: dict[str, dict[str, Any]] = {}
    for path in (cache_file(), SHIPPED):
        try:
            root = read_yaml(path).root
        except ConfigError:
            continue
        if isinstance(root, dict):
            found |= {key: item for key, item in root.items() if isinstance(item, dict) and "options" in item}
    return found


def write(path: Path, entries: Mapping[str, Mapping[str, Any]], heading: str) -> None:
    """Write tuned options to a file, whole or not at all."""
    lines = [f"# {line}" for line in heading.splitlines()]
    for key, item in sorted(entries.items(), key=lambda pair: (pair[1]["family"], pair[1]["rival"], pair[0])):
        options = ", ".join(f"{name}: {value}" for name, value in item["options"].items())
        lines.append(f"'{key}': {{family: '{item['family']}', rival: {item['rival']}, options: {{{options}}}}}")
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _remember(fresh: dict[str, dict[str, Any]]) -> None:
    """Add to the user's cache. Where that cannot be written, the next evaluation tunes anew."""
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            root = read_yaml(path).root
        except ConfigError:
            root = None
        write(
            path,
            (root if isinstance(root, dict) else {}) | fresh,
            "Heuristics tuned by `vickrey eval`; may be deleted.",
        )
    except OSError:
        pass
