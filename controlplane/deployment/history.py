"""The last versions of a service's policy, to go back to: as they were in force, not as their files are by now.

A version that this controller had in force is kept itself, with what it has learned. Of one that an earlier controller
had there is the specification only; a policy file's has its digest, and is refused when the file is another by now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from controlplane.deployment.chosen import Chosen, Spec

VERSIONS = 3


class History:
    """The versions, latest last; iterates over their specifications."""

    def __init__(self, specs: Iterable[Spec] = ()) -> None:
        self._kept: deque[tuple[Spec, Chosen | None]] = deque(((spec, None) for spec in specs), maxlen=VERSIONS)

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Spec]:
        return (spec for spec, _ in self._kept)

    def append(self, chosen: Chosen) -> None:
        """Keep a version; the oldest of too many goes."""
        self._kept.append((dict(chosen.spec), chosen))

    def last(self) -> Chosen:
        """Return the latest version; ValueError: it cannot be made any more. There must be one."""
        spec, chosen = self._kept[-1]
        if chosen is None:
            return Chosen(spec)
        return Chosen(spec, chosen.policy)

    def last_spec(self) -> Spec:
        """Return the specification of the latest version. There must be one."""
        return self._kept[-1][0]

    def unmade(self) -> list[Spec]:
        """Return the specifications of versions that this controller has not made."""
        return [dict(spec) for spec, chosen in self._kept if chosen is None]

    def unmade_last(self) -> Spec | None:
        """Return the specification of the latest version if this controller has not made that."""
        return dict(self._kept[-1][0]) if self._kept and self._kept[-1][1] is None else None

    def keep(self, spec: Spec, made: Chosen) -> None:
        """Take in a version that was made meanwhile, if it is still one."""
        for i, (kept, chosen) in enumerate(self._kept):
            if chosen is None and kept == spec:
                self._kept[i] = kept, made

    def drop(self) -> None:
        """Forget the latest version, if there is one."""
        if self._kept:
            self._kept.pop()
