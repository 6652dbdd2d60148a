"""Arrays of a row a server, from one look to the next: servers come and go, and a row may be another one's."""

from __future__ import annotations

import numpy as np

from controlplane.policy import Bools, Floats


def kept(values: Floats, same: Bools, other: float = 0.0) -> Floats:
    """Return values, (servers before, …), as they are for the servers now, (servers, …).

    same: rows whose server is still there, (servers,). other: what the remaining rows get.
    """
    new = np.full((len(same), *values.shape[1:]), other)
    m = min(len(same), len(values))
    new[:m][same[:m]] = values[:m][same[:m]]
    return new
