"""Replay of sequences: stored states, burn-in, episodes' borders and the ring's seam."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")

from controlplane.agents.batch import Transition  # noqa: E402
from controlplane.agents.networks import RowNetwork  # noqa: E402
from controlplane.agents.replay import Replay  # noqa: E402
from controlplane.agents.sac import SacConfig, SoftActorCritic  # noqa: E402
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs  # noqa: E402
from controlplane.learned.schema import ActionSchema  # noqa: E402

torch.set_num_threads(1)

SERVERS, HIDDEN = 3, 8


def played(network: RowNetwork, replay: Replay, steps: int, rows: int, fresh_at: dict[int, list[int]]) -> None:
    """Fill a replay as a trainer does: the state before each step is stored, and initial where an episode begins.

    whole[:, 0] is the number of the step, whole[:, 1] that of the row.
    """
    rng = np.random.default_rng(1)
    hidden = np.zeros((rows, SERVERS, HIDDEN), np.float32)
    for step in range(steps):
        fresh = np.isin(np.arange(rows), fresh_at.get(step, []))
        hidden = hidden * ~fresh[:, None, None]
        whole = np.zeros((rows, len(GLOBAL_COLUMNS)), np.float32)
        whole[:, 0], whole[:, 1] = step, np.arange(rows)
        looks = rng.normal(size=(rows, SERVERS, len(SERVER_COLUMNS))).astype(np.float32)
        inputs = Inputs(looks, whole / 100, np.ones((rows, SERVERS), np.bool_))
        replay.add(
            Transition(
                inputs,
                np.full((rows, SERVERS, 2), step % 5),
                np.full((rows, 3), step % 5),
                np.full(rows, step, np.float32),
                np.zeros((rows, 0), np.float32),
                np.zeros(rows, np.bool_),
                fresh,
                hidden,
                balancers=2,
            )
        )
        with torch.no_grad():
            parts = (torch.from_numpy(x) for x in (inputs.rows, inputs.whole, inputs.active, hidden))
            hidden = network(*parts)[2].numpy()


def test_the_stored_state_is_the_state_recomputed_while_parameters_stay():
    network, replay = RowNetwork(ActionSchema(), HIDDEN), Replay(10_000, 4, 2)
    played(network, replay, 40, 4, {0: [0, 1, 2, 3], 7: [1], 18: [0, 2]})
    rng = np.random.default_rng(2)
    batch = replay.sample(rng, 64)
    # Run all the way from where the row's first episode began, through the stored inputs.
    with torch.no_grad():
        given = (torch.from_numpy(replay.arrays[k][:40].swapaxes(0, 1)) for k in ("rows", "whole", "active"))
        fresh = torch.from_numpy(replay.arrays["fresh"][:40].swapaxes(0, 1))
        states = network.states(*given, network.initial(4, SERVERS), fresh)
        start = (batch.whole[:, 0, 0] * 100).round().long()
        row = (batch.whole[:, 0, 1] * 100).round().long()
        again = network.states(batch.rows, batch.whole, batch.active, batch.hidden, batch.fresh, batch.burn_in)
    for i in range(len(start)):
        span = states[row[i], start[i] : start[i] + replay.span]
        torch.testing.assert_close(again[i], span, rtol=1e-5, atol=1e-6)


def test_nothing_leaks_over_the_border_of_an_episode():
    network, replay = RowNetwork(ActionSchema(), HIDDEN), Replay(10_000, 4, 2)
    played(network, replay, 12, 2, {0: [0, 1], 4: [0]})
    batch = replay.sample(np.random.default_rng(3), 40)
    crossing = batch.fresh[:, 1:].any(1)
    assert crossing.any()
    rows = batch.rows.clone().requires_grad_(True)
    states = network.states(rows, batch.whole, batch.active, batch.hidden, batch.fresh)
    for i in torch.nonzero(crossing)[:, 0].tolist()[:3]:
        border = int(torch.nonzero(batch.fresh[i])[-1])
        (gradient,) = torch.autograd.grad(states[i, border:].square().sum(), rows, retain_graph=True)
        assert not gradient[i, :border].any()
        assert gradient[i, border:].any()


def test_a_step_before_a_cut_is_not_learned_from_but_one_that_terminated_is():
    network, replay = RowNetwork(ActionSchema(), HIDDEN), Replay(10_000, 3, 1)
    played(network, replay, 5, 2, {0: [0, 1], 3: [0, 1]})
    replay.arrays["done"][2, 1] = True
    batch = replay.sample(np.random.default_rng(4), 30)
    cut, over = batch.valid[batch.whole[:, 0, 1] < 0.005], batch.valid[batch.whole[:, 0, 1] > 0.005]
    # Steps 0 (burn-in), 1, 2 (before the border) and 3; step 4 is successor only.
    assert cut.tolist() == [[False, True, False, True]] * len(cut)
    assert over.tolist() == [[False, True, True, True]] * len(over)


def test_sequences_are_whole_and_never_cross_the_seam_of_the_ring():
    network, replay = RowNetwork(ActionSchema(), HIDDEN), Replay(60, 4, 2)
    played(network, replay, 53, 2, {0: [0, 1]})
    assert replay.steps == 30
    batch = replay.sample(np.random.default_rng(5), 200)
    steps = (batch.whole[:, :, 0] * 100).round()
    assert (steps.diff(dim=1) == 1).all()
    assert steps.min() >= 53 - 30
    assert steps.max() <= 52
    # All that is there is drawn.
    assert sorted(set(steps[:, 0].int().tolist())) == list(range(24, 53 - replay.span + 1, 2))
    # What was done comes back with what was seen.
    assert (batch.reward == steps).all()
    assert (batch.numbers_whole[:, :, 0] == steps.long() % 5).all()


def test_balancers_of_a_replica_come_together():
    network, replay = RowNetwork(ActionSchema(), HIDDEN), Replay(10_000, 3, 1)
    played(network, replay, 20, 6, {0: list(range(6))})
    batch = replay.sample(np.random.default_rng(6), 50, several=True)
    row = (batch.whole[..., 1] * 100).round()
    assert batch.rows.shape[:3] == (50, 2, replay.span)
    assert batch.hidden.shape == (50, 2, SERVERS, HIDDEN)
    assert (row[:, 0] % 2 == 0).all()
    assert (row[:, 1] == row[:, 0] + 1).all()
    assert set(row[:, 0, 0].int().tolist()) == {0, 2, 4}
    merged = batch.merged()
    assert merged.rows.shape[:2] == (100, replay.span)


def test_what_does_not_fit_is_refused():
    network, replay = RowNetwork(ActionSchema(), HIDDEN), Replay(100, 4, 2)
    played(network, replay, 3, 2, {})
    with pytest.raises(ValueError, match="3 steps, a sequence has 7"):
        replay.sample(np.random.default_rng(7), 1)
    with pytest.raises(ValueError, match=r"rows has shape \(5, 3, 17\), expected \(2, 3, 17\)"):
        played(network, replay, 1, 5, {})
    with pytest.raises(ValueError, match="capacity and length >= 1"):
        Replay(0, 4, 2)


def test_a_saved_replay_samples_the_same():
    network, replay, other = RowNetwork(ActionSchema(), HIDDEN), Replay(60, 4, 2), Replay(60, 4, 2)
    played(network, replay, 40, 2, {0: [0, 1]})
    other.load_state_dict(replay.state_dict())
    ours, theirs = (r.sample(np.random.default_rng(8), 5) for r in (replay, other))
    assert torch.equal(ours.rows, theirs.rows)
    assert torch.equal(ours.hidden, theirs.hidden)


def test_how_much_is_new_since_the_last_update_is_saved_with_the_replay():
    config = SacConfig(hidden=HIDDEN, warmup=0, length=2, burn_in=0, steps_per_update=3)
    agent, other = SoftActorCritic(ActionSchema(), config), SoftActorCritic(ActionSchema(), config)
    played(RowNetwork(ActionSchema(), HIDDEN), cast("Replay", SimpleNamespace(add=agent.store)), 10, 2, {0: [0, 1]})
    agent.sample()
    played(RowNetwork(ActionSchema(), HIDDEN), cast("Replay", SimpleNamespace(add=agent.store)), 3, 2, {0: [0, 1]})
    assert agent.ready
    other.load_state_dict(agent.state_dict(replay=True))
    assert other.ready
    old = {key: value for key, value in agent.state_dict(replay=True).items() if key != "due"}
    other.load_state_dict(old)
    assert not other.ready  # as it was when nothing told
