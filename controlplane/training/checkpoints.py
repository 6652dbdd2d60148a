"""What a training leaves behind in its folder, and how it goes on from there.

    config.yaml                   the configuration in force, scenarios and seed
    policy.safetensors            the result: the best policy by held-out evaluation
    best.safetensors, last.safetensors     the best so far; the present one
    checkpoints/0000123/          policy.safetensors, and state.pt to resume from; the newest few
    progress.jsonl                a line a round: steps, seconds, losses, evaluations
    tensorboard/                  the same for TensorBoard

Files appear whole or not at all: a checkpoint is a folder that was renamed when it was complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from controlplane.command import CommandError

STATE = "state.pt"
FORMAT = 1


class Folder:
    """A training's folder."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def create(self) -> None:
        """Make it. Raises CommandError when there is a training in it already, or it cannot be made."""
        if self.checkpoints.exists():
            raise CommandError(
                f"{self.path}: there is a training already: `--resume {self.path}`, or another --out", status=2
            )
        try:
            self.checkpoints.mkdir(parents=True)
        except OSError as error:
            raise CommandError(f"{self.path}: {(error.strerror or str(error)).lower()}") from None

    def newest(self) -> Path:
        """Return the newest checkpoint. Raises CommandError when there is none."""
        found = sorted(p for p in self.checkpoints.glob("[0-9]*") if (p / STATE).is_file())
        if not found:
            what = "no checkpoint in it" if self.path.is_dir() else "no such folder"
            raise CommandError(f"--resume {self.path}: {what}", status=2)
        return found[-1]

    def save(self, number: int, state: Mapping[str, Any], keep: int) -> Path:
        """Write a checkpoint and remove the oldest beyond `keep`."""
        import torch

        final = self.checkpoints / f"{number:07d}"
        temporary = self.checkpoints / f".{number:07d}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            with open(temporary / STATE, "wb") as file:
                torch.save({"format": FORMAT, **as_tensors(state)}, file)
                file.flush()
                os.fsync(file.fileno())
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CommandError(f"{final}: {(error.strerror or str(error)).lower()}") from None
        for old in sorted(p for p in self.checkpoints.glob("[0-9]*") if p.is_dir())[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Return a checkpoint's state. Raises CommandError when it is none of ours, or damaged."""
        import pickle

        import torch

        file = checkpoint / STATE
        try:
            state: dict[str, Any] = torch.load(file, weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise CommandError(f"{file}: cannot be read: {' '.join(str(error).split())[:120]}", status=2) from None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CommandError(f"{file}: expected a checkpoint of format {FORMAT}", status=2)
        return {key: from_tensors(value) for key, value in state.items() if key != "format"}


def as_tensors(value: Any) -> Any:
    """Return a state with numpy arrays as tensors, which torch.load takes with weights_only."""
    import torch

    if isinstance(value, Mapping):
        return {key: as_tensors(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_tensors(v) for v in value)
    if isinstance(value, np.ndarray):
        return {"__numpy__": torch.from_numpy(np.ascontiguousarray(value))}
    return value.item() if isinstance(value, np.generic) else value


def from_tensors(value: Any) -> Any:
    """Undo as_tensors()."""
    if isinstance(value, Mapping):
        if set(value) == {"__numpy__"}:
            return value["__numpy__"].numpy()
        return {key: from_tensors(v) for key, v in value.items()}
    return type(value)(from_tensors(v) for v in value) if isinstance(value, list | tuple) else value


class Progress:
    """A line of JSON a round, and TensorBoard's events where it is installed."""

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / "progress.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"))
        except ImportError:
            pass  # the lines are there without it

    @property
    def has_tensorboard(self) -> bool:
        return self._writer is not None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a round's figures."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in figures.items():
                if isinstance(value, int | float) and np.isfinite(value):
                    self._writer.add_scalar(name if "/" in name else f"training/{name}", value, step)
            self._writer.flush()

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()
