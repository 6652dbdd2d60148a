"""Who overtook whom: whether a server works on few flows at a time or shares its cores, and how many it works on.

Both are told from flow records alone: where flows wait their turn, they end in the order in which they came, but for
those that are worked on at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controlplane.policy import Floats, Ids
from controlplane.rows import kept

# Chances of overtaking that tell something, and over which the past fades.
CHANCES_LEAST, CHANCES_KEPT = 4.0, 30.0
# Flows hold back until so many of the chances were taken, and again below the second.
SHARING_FROM, SHARING_UNTIL = 0.15, 0.06
# Chances at a limit that was raised, and the part of them that may be taken, after which it counts as kept.
KEPT_CHANCES, KEPT_PART = 20.0, 0.08
# Part of the chances taken below which a server may be seen to have more workers than the times tell.
RAISED_BELOW = 0.5
# So many flows, and such a part of those that one worker more would let overtake, must have overtaken more than the
# limit allows for a server to be given more workers; and the flows closed there over which that is forgotten.
PROOFS, PROOFS_PART, PROVEN_FLOWS = 2.0, 0.3, 20_000.0
# A limit is one too many where so many flows should have shown it, and less than this part of them did.
REFUTED_FROM, REFUTED_PART = 6.0, 0.15
# The shape of the demands: records that it is taken from, those in whose mean each is measured (of twice as many a
# server has a shape of its own), how many are needed, and its quantiles. Where it lets less than the last of the
# exponential part be the first, it tells nothing.
SHAPE_RECORDS, SHAPE_NEAR, SHAPE_FLOWS, SHAPE_POINTS, SHAPE_PART = 2000, 16, 64, 128, 0.3
# Times that add up to less, seconds, are no shape.
TIME_LEAST = 1e-9
# Records kept to look back at, looked at in an interval, and the part of the closed flows that must have one.
RECORDS_KEPT, CANDIDATES, RECORDS_WHOLE = 20_000, 128, 0.97


def first_of(times: Floats, workers: Floats) -> Floats:
    """Return which part of the flows end before all others that a server works on with so many workers, of its shape.

    times: how long flows take, in any unit. Whoever begins when the others have been at work for some time, as renewals
    have, ends after x before a certain one of them with the chance F̄e(x) = Σ (t − x)⁺ / Σ t. Exponential: 1/workers.
    """
    x = np.sort(times)
    left = np.cumsum(x[::-1])[::-1] - x * np.arange(len(x), 0.0, -1.0)
    later = np.clip(left / max(float(x.sum()), TIME_LEAST), 0.0, 1.0)
    return np.asarray((later ** (workers[:, None] - 1.0)).mean(axis=1))


def _quantiles(times: Floats) -> Floats:
    points = (np.arange(SHAPE_POINTS) + 0.5) * (len(times) / SHAPE_POINTS)
    return np.asarray(np.sort(times)[points.astype(np.intp)])


def _beside_near(at: NDArray[np.intp], took: Floats) -> Floats:
    """Return times over the mean of the SHAPE_NEAR around them on their server; at: their servers, one after another.

    Where flows that are near in time are alike, none overtakes another however much they differ in a while.
    """
    total = np.concatenate([[0.0], np.cumsum(took)])
    begin = np.searchsorted(at, at, side="left")
    last = np.searchsorted(at, at, side="right") - SHAPE_NEAR
    low = np.clip(np.arange(len(at)) - SHAPE_NEAR // 2, begin, last)
    near = (total[low + SHAPE_NEAR] - total[low]) / SHAPE_NEAR
    return np.asarray(took / np.maximum(near, TIME_LEAST))


class Overtaking:
    """Whether servers keep the order of their flows, from the flow records: late binding is for those that do.

    On a server that works on K flows at once and queues the rest, no flow leaves before K or more that came earlier
    are done; where all share the cores, a flow that found n is the first to leave, or the second …, with equal
    chances for an exponential demand. So E counts the chances of overtaking K, V those taken. Sharing with
    demands that vary little keeps the order as well, and gains from late binding as well.

    A flow that leaves before m that came earlier also proves that its server works on m + 1 at once. So a server
    where K was too low, as heavy tails make it look, is given more, and then judged anew: what was taken there is no
    evidence of sharing. Where cores are shared that goes on until nothing, or sharing, is left to be judged.

    Not every one does: of two flows that are sent within a moment, one on a fresh connection, the later may come first.
    With m + 1 workers one flow in m + 1 overtakes m; where far fewer do, nothing is proven, and what was is taken back.

    Where that is so although demands are of a shape that should let many overtake (first_of), there are not so many
    workers. A worker that always has two flows looks by its times like two of half the speed, but none of its flows
    ever overtakes.
    """

    def __init__(self) -> None:
        self._chances: Floats = np.zeros(0)
        self._taken: Floats = np.zeros(0)
        self._raised: Floats = np.zeros(0)  # 1: its limit was found too low, the new one was not kept yet
        self._since: Floats = np.zeros((0, 2))  # chances, and those taken, since it was raised
        self.proven: Floats = np.zeros(0)  # flows that each server was seen to work on at once
        self.most: Floats = np.zeros(0)  # and that it can work on at most; inf: not known
        # Of as many workers as its limit, of one more, and of as many by the shape of the demands: flows that should
        # have shown them, and those that did.
        self._proofs: Floats = np.zeros((0, 3, 2))
        self._limit: Floats = np.zeros(0)
        self._ids: Ids = np.zeros(0, dtype=np.uint64)
        self._past = np.empty((4, 0), dtype=np.int64)  # closed, dispatched, server, found; in order of closing

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
        self._match(ids, limit)
        if len(records) < RECORDS_WHOLE * closed - 4.0:
            self._past = self._past[:, :0]  # some are lost: who overtook whom cannot be told
            self._fade(np.full(len(ids), closed / max(len(ids), 1)))
            return
        records = records[records["server"] < len(ids)]
        records = records[records["server_id"] == ids[records["server"]]]
        if len(records) == 0:
            return
        self._fade(np.bincount(records["server"], minlength=len(ids)))
        known_since = self._keep(records)
        may = (
            (records["found"] >= np.maximum(limit[records["server"]] - 1.0, 1.0))
            & (records["dispatched_ns"] >= known_since)
            & (records["outcome"] == 0)  # what a server refuses it does not work on
        )
        if may.any():
            self._count(records[may], limit)
            self._judge(limit)

    def _fade(self, flows: Floats | NDArray[np.intp]) -> None:
        """Let what was found count less, so many flows of each server later."""
        left = np.exp(-flows / PROVEN_FLOWS)
        self.proven *= left
        self.most /= left

    def _match(self, ids: Ids, limit: Floats) -> None:
        """Keep the rows whose server is still there, and the proofs of those whose limit is what it was."""
        same = np.zeros(len(ids), dtype=bool)
        m = min(len(ids), len(self._ids))
        same[:m] = ids[:m] == self._ids[:m]
        for name in ("_chances", "_taken", "_raised", "_since", "proven"):
            setattr(self, name, kept(getattr(self, name), same))
        self.most = kept(self.most, same, np.inf)
        unchanged = same.copy()
        unchanged[:m] &= limit[:m] == self._limit[:m]
        self._proofs = kept(self._proofs, unchanged)
        self._limit, self._ids = limit, ids
        server = self._past[2]
        if not same.all() or (server >= len(ids)).any():
            self._past = self._past[:, (server < len(ids)) & same[np.minimum(server, len(ids) - 1)]]

    def _keep(self, records: NDArray[np.void]) -> int:
        """Add records to those kept; return from when on every flow that was closed is among them."""
        new = np.stack([records[name].astype(np.int64) for name in ("closed_ns", "dispatched_ns", "server", "found")])
        had = self._past.shape[1] > 0
        both = np.concatenate([self._past, new], axis=1)
        self._past = np.ascontiguousarray(both[:, np.argsort(both[0], kind="stable")[-RECORDS_KEPT:]])
        return int(self._past[0, 0]) if had else int(new[1].min())

    def _count(self, candidates: NDArray[np.void], limit: Floats) -> None:
        """Count chances and what was taken of them, over some of the flows that found their server busy."""
        candidates = candidates[:: -(-len(candidates) // CANDIDATES)]
        closed, dispatched, server, _ = self._past
        since = candidates["dispatched_ns"].astype(np.int64)
        begin = np.searchsorted(closed, since, side="right")
        end = np.searchsorted(closed, candidates["closed_ns"].astype(np.int64), side="right")
        at, found = candidates["server"].astype(np.intp), candidates["found"].astype(np.float64)
        # Those that were there before it and left before it, or with it. Flows may be dispatched at one moment: those
        # are taken for earlier ones, and it itself is among them.
        left = np.array(
            [
                np.count_nonzero((dispatched[b:e] <= t) & (server[b:e] == i)) - 1
                for b, e, t, i in zip(begin, end, since, at, strict=True)
            ]
        )
        most, overtaken = limit[at], found - np.maximum(left, 0)
        chances = np.bincount(at, (found - most + 1.0) / (found + 1.0), len(limit))
        taken = np.bincount(at, overtaken >= most, len(limit))
        expected = ((limit, 1.0 / limit), (limit + 1.0, 1.0 / (limit + 1.0)), (limit, self._first_of(limit)))
        for i, (number, chance) in enumerate(expected):
            workers = number[at]
            due = np.bincount(at, (found + 1.0 >= workers) * chance[at], len(limit))
            seen = np.bincount(at, overtaken + 1.0 >= workers, len(limit))
            keep = np.exp(-due / CHANCES_KEPT)[:, None]
            self._proofs[:, i] = self._proofs[:, i] * keep + np.stack([due, seen], axis=1)
        keep = np.exp(-chances.sum() / CHANCES_KEPT)
        self._chances = self._chances * keep + chances
        self._taken = self._taken * keep + taken
        self._since += np.stack([chances, taken], axis=1)

    def _first_of(self, limit: Floats) -> Floats:
        """Return the part of the flows that overtake all others on a server of so many workers; 0: not known."""
        closed, dispatched, server, found = self._past[:, -SHAPE_RECORDS:]
        alone = np.flatnonzero(found < limit[server])
        alone = alone[np.argsort(server[alone], kind="stable")]  # each server's in the order of closing
        at, took = server[alone], (closed - dispatched)[alone] * 1e-9
        count = np.bincount(at, minlength=len(limit))
        enough = count[at] >= SHAPE_NEAR
        at, times = at[enough], _beside_near(at[enough], took[enough])
        part = np.zeros(len(limit))
        if len(times) < SHAPE_FLOWS:
            return part
        workers, which = np.unique(limit, return_inverse=True)
        part = first_of(_quantiles(times), workers)[which]
        for i in np.flatnonzero(count >= 2 * SHAPE_NEAR):
            part[i] = first_of(_quantiles(times[at == i]), limit[i : i + 1])[0]
        return np.where(part * limit > SHAPE_PART, part, 0.0)

    def _judge(self, limit: Floats) -> None:
        """Raise what is proven of a server where its limit was passed."""
        # Shared cores give such proofs as well: they count once most chances were not taken.
        trusted = self.judged and self.share < RAISED_BELOW
        if not trusted:
            self.proven[:] = 0.0
        if self.judged and not trusted:
            self.most[:] = np.inf  # what overtakes that often may have more workers everywhere
        due, seen = self._proofs[..., 0], self._proofs[..., 1]
        enough = (seen >= PROOFS) & (seen >= PROOFS_PART * due) & trusted
        more = enough[:, 1]
        self.proven = np.maximum(self.proven, np.where(more, limit + 1.0, np.where(enough[:, 0], limit, 0.0)))
        self._proofs[more] = 0.0
        # What was proven is taken back by what exponential demands would show: to prove needs as much. That there are
        # fewer workers at all takes demands that are known to show it.
        refuted = (due >= REFUTED_FROM) & (seen < REFUTED_PART * due) & (limit > 1.0)[:, None]
        one_less = limit - 1.0
        self.proven = np.where(refuted[:, 0], np.minimum(self.proven, one_less), self.proven)
        self.most = np.where(refuted[:, 2], np.minimum(self.most, one_less), np.where(more, np.inf, self.most))
        # Where it was raised once and the new limit has not been kept since, what is taken counts: on shared cores each
        # raise would wipe what speaks for sharing, and a few chances in a row are kept by luck.
        wiped = more & (self._raised == 0.0)
        self._raised[more] = 1.0
        self._chances[wiped] = self._taken[wiped] = 0.0
        self._since[more] = 0.0
        kept = (self._since[:, 0] >= KEPT_CHANCES) & (self._since[:, 1] < KEPT_PART * self._since[:, 0])
        self._raised[kept] = 0.0
