"""VDN: what sums can represent, and what they cannot."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")

from controlplane.agents.vdn import ValueDecomposition  # noqa: E402
from tests.agents.test_qmix import CHOICE, TWO_STEP, joint_values  # noqa: E402
from tests.agents.two_step import play, value  # noqa: E402

torch.set_num_threads(1)


def test_the_two_step_game_is_beyond_sums() -> None:
    agent = ValueDecomposition(CHOICE, TWO_STEP, seed=1)
    play(agent, 600)
    # Of [[0, 1], [1, 8]] under even exploration the nearest sum is [[−1.5, 2.5], [2.5, 6.5]]: below A's 7.
    assert joint_values(agent)[2] == pytest.approx(torch.tensor([[-1.5, 2.5], [2.5, 6.5]]).numpy(), abs=0.4)
    assert value(agent) == 7.0
