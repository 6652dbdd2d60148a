"""Who overtook whom: whether a server works on few flows at a time or shares its cores, and how many it works on.

Both are told from flow records alone: where flows wait their turn, they end in the order in which they came, but for
those that are worked on at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controlplane.policy import Floats, Ids
from shm_layout.layout import FLOW_RECORD

# Chances of overtaking that tell something, and over which the past fades.
CHANCES_LEAST, CHANCES_KEPT = 4.0, 60.0
# Flows hold back until so many of the chances were taken, and again below the second.
SHARING_FROM, SHARING_UNTIL = 0.6, 0.4
# Part of the chances taken below which a server may be seen to have more workers than the times tell.
RAISED_BELOW = 0.5
# Of so many flows in a row that kept all workers of their server's limit busy, all must have overtaken more than it
# allows for the server to be given more workers; and the flows closed there over which that is forgotten.
PROOFS, PROVEN_FLOWS = 2.0, 20_000.0
# Records kept to look back at, looked at in an interval, and the part of the closed flows that must have one.
RECORDS_KEPT, CANDIDATES, RECORDS_WHOLE = 20_000, 128, 0.97


class Overtaking:
    """Whether servers keep the order of their flows, from the flow records: late binding is for those that do.

    On a server that works on K flows at once and queues the rest, no flow leaves before K or more that came earlier
    are done; where all share the cores, a flow that found n is the first to leave, or the second …, with equal
    chances for an exponential demand. So E counts the chances of overtaking K, V those taken. Sharing with
    demands that vary little keeps the order as well, and gains from late binding as well.

    A flow that leaves before m that came earlier also proves that its server works on m + 1 at once. So a server
    where K was too low, as heavy tails make it look, is given more, and then judged anew: what was taken there is no
    evidence of sharing. Where cores are shared that goes on until nothing, or sharing, is left to be judged.
    """

    def __init__(self) -> None:
        self._chances: Floats = np.zeros(0)
        self._taken: Floats = np.zeros(0)
        self._raised: Floats = np.zeros(0)  # 1: its limit was found too low, the new one was not kept yet
        self.proven: Floats = np.zeros(0)  # flows that each server was seen to work on at once
        self._proofs: Floats = np.zeros((0, 2))  # of as many as its limit, and of one more
        self._limit: Floats = np.zeros(0)
        self._ids: Ids = np.zeros(0, dtype=np.uint64)
        self._past = np.empty(0, dtype=FLOW_RECORD)

    @property
    def chances(self) -> float:
        return float(self._chances.sum())

    @property
    def taken(self) -> float:
        return float(self._taken.sum())

    @property
    def share(self) -> float:
        """V/E, about 1 for exponential demand on shared cores; 0 where nothing was seen."""
        return self.taken / self.chances if self.chances > 0.0 else 0.0

    @property
    def judged(self) -> bool:
        return self.chances >= CHANCES_LEAST

    def update(self, records: NDArray[np.void], closed: float, ids: Ids, limit: Floats) -> None:
        """Take in the records of an interval in which so many flows were closed."""
        same = np.zeros(len(ids), dtype=bool)
        m = min(len(ids), len(self._ids))
        same[:m] = ids[:m] == self._ids[:m]
        for name in ("_chances", "_taken", "_raised", "proven"):
            row = np.zeros(len(ids))
            row[:m] = np.where(same[:m], getattr(self, name)[:m], 0.0)
            setattr(self, name, row)
        proofs = np.zeros((len(ids), 2))
        proofs[:m] = np.where((same[:m] & (limit[:m] == self._limit[:m]))[:, None], self._proofs[:m], 0.0)
        self._proofs, self._limit, self._ids = proofs, limit, ids
        if len(records) < RECORDS_WHOLE * closed - 4.0:
            self._past = self._past[:0]  # some are lost: who overtook whom cannot be told
            return
        records = records[records["server"] < len(ids)]
        records = records[records["server_id"] == ids[records["server"]]]
        if len(records) == 0:
            return
        self.proven *= np.exp(-np.bincount(records["server"], minlength=len(ids)) / PROVEN_FLOWS)
        both = np.concatenate([self._past, records])
        both = both[np.argsort(both["closed_ns"], kind="stable")][-RECORDS_KEPT:]
        start = int(both["closed_ns"][0]) if len(self._past) else int(records["dispatched_ns"].min())
        self._past = both
        bound = limit[records["server"]]
        may = (
            (records["found"] >= np.maximum(bound - 1.0, 1.0))
            & (records["dispatched_ns"] >= start)
            & (records["outcome"] <= 1)
        )
        candidates = records[may]
        if len(candidates) == 0:
            return
        candidates = candidates[:: -(-len(candidates) // CANDIDATES)]
        chances, taken = np.zeros(len(ids)), np.zeros(len(ids))
        closed_ns, dispatched_ns, server = both["closed_ns"], both["dispatched_ns"], both["server"]
        for r in candidates:
            begin, end = np.searchsorted(closed_ns, [r["dispatched_ns"], r["closed_ns"]], side="right")
            left = (dispatched_ns[begin:end] < r["dispatched_ns"]) & (server[begin:end] == r["server"])
            at, found = int(r["server"]), float(r["found"])
            most, overtaken = float(limit[at]), found - float(left.sum())
            taken[at] += overtaken >= most
            proofs[at] += overtaken + 1.0 >= most, overtaken >= most
            chances[at] += (found - most + 1.0) / (found + 1.0)
        keep = np.exp(-chances.sum() / CHANCES_KEPT)
        self._chances = self._chances * keep + chances
        self._taken = self._taken * keep + taken
        # Shared cores give such proofs as well: they count once most chances were not taken.
        trusted = self.judged and self.share < RAISED_BELOW
        if not trusted:
            self.proven[:] = 0.0
        enough = (proofs >= PROOFS) & trusted
        more = enough[:, 1]
        self.proven = np.maximum(self.proven, np.where(more, limit + 1.0, np.where(enough[:, 0], limit, 0.0)))
        proofs[enough.any(axis=1)] = 0.0
        # Where it was raised once and the new limit has not been kept since, what is taken counts.
        wiped = more & (self._raised == 0.0)
        self._raised[more] = 1.0
        self._chances[wiped] = self._taken[wiped] = 0.0
        kept = (self._chances >= CHANCES_LEAST) & (self._taken < SHARING_UNTIL * self._chances)
        self._raised[kept] = 0.0
