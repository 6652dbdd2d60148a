"""What hyper-parameters may be, as types: training/config.py checks a file's values by them (docs/learning.md).

Every number of an agent's Config has bounds on both sides, so that none of them makes a training hang, end in a
traceback, or learn nothing without a word.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from controlplane.learned.manifest import HIDDEN_MAX

Units = Annotated[int, Field(ge=1, le=HIDDEN_MAX)]  # width of a network's layer
Number = Annotated[int, Field(ge=1, le=1_000_000)]  # of what there must be one at least
Length = Annotated[int, Field(ge=1, le=4_096)]  # steps of a sequence
BurnIn = Annotated[int, Field(ge=0, le=4_096)]
Warmup = Annotated[int, Field(ge=0, le=100_000_000)]
Transitions = Annotated[int, Field(ge=1, le=100_000_000)]
Updates = Annotated[int, Field(ge=0, le=10**12)]  # until something has fallen; 0: at once, or never

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Discount = Share
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Part = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]  # a share that is not nothing
Rate = Part  # of learning
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]  # 0: not at all
Spread = Annotated[float, Field(ge=1e-4, le=10, allow_inf_nan=False)]  # of logarithms of ratios
Few = Annotated[int, Field(ge=1, le=256)]  # of what each is an episode of its own, side by side
Draws = Annotated[int, Field(ge=2, le=1000)]  # with replacement, whose spread is wanted
Seconds = Annotated[float, Field(ge=0.001, le=3600, allow_inf_nan=False)]
Balancers = Annotated[int, Field(ge=1, le=64)]

# Heads of a row that deviate, on average: a few, as what the others do is what is learned about.
Deviations = Annotated[float, Field(ge=0, le=4, allow_inf_nan=False)]
