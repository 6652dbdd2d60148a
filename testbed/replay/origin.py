"""Where figures come from, so that a report that was sent on still tells: commit, machine, load, configuration."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent.parent


def origin(configuration: dict[str, Any]) -> dict[str, Any]:
    """Describe this moment on this machine. configuration: what the run depends on; JSON."""
    return {
        "version": _version(),
        "commit": commit(),
        "config_sha256": digest(configuration),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average": os.getloadavg()[0],
    }


def digest(configuration: dict[str, Any]) -> str:
    """The SHA-256 of a configuration, whatever the order of its keys."""
    text = json.dumps(configuration, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def machine() -> str:
    """Processor, cores that we may use, memory, kernel."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in _lines("/proc/cpuinfo")
            if line.startswith(("model name", "Hardware", "cpu model"))
        ),
        platform.machine(),
    )
    total_kb = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, {int(total_kb) / 2**20:.0f} GiB, {platform.system()} {platform.release()}"


def commit() -> str | None:
    """The commit of this source tree, with + when files have changed since; None where there is none."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    run = subprocess.run(
        ["git", "-C", str(_ROOT), "--no-optional-locks", *arguments],
        capture_output=True, text=True, check=True, timeout=5,
    )  # fmt: skip
    return run.stdout.strip()


def _version() -> str:
    try:
        return version("vickrey")
    except PackageNotFoundError:
        return "source tree"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
