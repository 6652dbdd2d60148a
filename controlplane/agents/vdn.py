"""VDN: as QMIX, but the value of all is the sum of what the balancers expect.

Source      Sunehag et al., "Value-Decomposition Networks For Cooperative Multi-Agent Learning", AAMAS 2018:
            Q_tot(s, a) = Σ_k Q_k(τ_k, a_k)                                                               equation 1

It can represent only games whose value is such a sum; the rest of it is QMIX's (qmix.py).
"""

from __future__ import annotations

from controlplane.agents.mixing import SumMixer
from controlplane.agents.qmix import QMix


class ValueDecomposition(QMix):
    """Recurrent utilities of each head, summed over the balancers (and averaged over each one's heads)."""

    name = "vdn"
    mixer_class = SumMixer
