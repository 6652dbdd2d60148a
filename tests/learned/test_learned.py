"""The learned policy: its base policy where it has nothing to say, the environments' action where it has, within
bounds always."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlplane import registry
from controlplane.directive import check
from controlplane.learned.correction import CAP, FLOOR
from controlplane.learned.manifest import Range
from controlplane.learned.schema import ActionSchema
from controlplane.policies.learned import Learned
from controlplane.policy import CURVE_N, Directive, Observation, PolicyError
from dataplane.simulator import Exponential, Poisson, Server, Simulation, World
from dataplane.simulator.results import OUTCOME_OK
from shm_layout.layout import OUTCOMES
from tests.learned.files import CURVES, always, neutral, oscillating, random, ranges, save
from tests.policies.observations import observation

POINTS = len(CURVE_N)
OPEN = 255  # a flow's outcome while it is in a server


def farm(seconds: float = 8.0, load: float = 0.85, balancers: int = 1) -> World:
    servers = [Server(speed=speed, workers=2) for speed in (1.0, 1.0, 2.0, 4.0)]
    world = World(servers, Poisson(1.0), Exponential(0.02), duration=seconds, seed=3, balancers=balancers)
    return world.at_load(load)


class Watched:
    """A policy and all that it decided."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.name = policy, policy.name
        self.seen: list[tuple[Observation, Directive]] = []

    def __deepcopy__(self, memo: Any) -> Watched:
        return self  # the simulator gives each balancer a copy; there is one here

    def decide(self, o: Observation) -> Directive:
        directive = self.policy.decide(o)
        check(directive, o.n_servers)
        self.seen.append((o, directive))
        return directive


def run(policy: Any, world: World) -> tuple[Watched, Any]:
    watched = Watched(registry.create(policy) if isinstance(policy, str | dict) else policy)
    return watched, Simulation(world).run(watched, interval=0.1)


def learned(path: Path, **options: Any) -> Learned:
    policy = registry.create({"name": "learned", "file": str(path), **options})
    assert isinstance(policy, Learned)
    return policy


# --- the base policy ---


@pytest.mark.parametrize("base", ["adaptive", "gsed", {"name": "gsed", "c": 0.2}])
def test_outputs_of_zero_are_the_base_policy_to_the_bit(tmp_path: Path, base: Any) -> None:
    file = save(tmp_path / "p.safetensors", neutral(), base=base, decode="mode")
    mine, ours = run(learned(file), farm())
    theirs, alone = run(base, farm())
    assert len(mine.seen) == len(theirs.seen) > 50
    for (_, one), (_, other) in zip(mine.seen, theirs.seen, strict=True):
        assert one.curves.tobytes() == other.curves.tobytes()
        assert one.weights.tobytes() == other.weights.tobytes()
    assert ours.records.tobytes() == alone.records.tobytes(), "every flow went where it would have gone"


def test_a_policy_for_several_balancers_leaves_one_alone_to_the_bit(tmp_path: Path) -> None:
    """One balancer sees every flow: what was learned from parts of them says nothing there."""
    file = save(tmp_path / "p.safetensors", random(scale=2.0), ranges=ranges(balancers=(2, 8)))
    policy = learned(file)
    _, ours = run(policy, farm())
    assert (policy.novelty, policy.blend, policy.strangest) == (1.0, 0.0, "balancers")
    assert ours.records.tobytes() == run("adaptive", farm())[1].records.tobytes()
    two = farm(seconds=3.0, balancers=2)
    mine, theirs = (Simulation(two).run(which, interval=0.1) for which in (learned(file), registry.create("adaptive")))
    assert mine.records.tobytes() != theirs.records.tobytes(), "with several it acts"


@pytest.mark.parametrize("servers", [2, 64, 256])
@pytest.mark.parametrize("balancers", [1, 2, 8])
def test_one_file_serves_any_number_of_servers_and_balancers(tmp_path: Path, servers: int, balancers: int) -> None:
    policy = learned(save(tmp_path / "p.safetensors", random(scale=1.0), base="gsed"), fade=False)
    world = World([Server(workers=2)] * servers, Poisson(1.0), Exponential(0.02), duration=1.0, balancers=balancers)
    mine, theirs = (Simulation(world.at_load(0.7)).run(p, interval=0.2) for p in (policy, registry.create("gsed")))
    assert set(mine.records["outcome"]) <= {OUTCOME_OK, OPEN}
    assert mine.records.tobytes() != theirs.records.tobytes(), "it acts"


def test_a_policy_that_fades_out_altogether_is_the_base_policy_to_the_bit(tmp_path: Path) -> None:
    strange = ranges(Range(50.0, 0.1, 49.9, 50.1))
    file = save(tmp_path / "p.safetensors", random(scale=2.0), ranges=strange)
    policy = learned(file)
    _, ours = run(policy, farm())
    assert ours.records.tobytes() == run("adaptive", farm())[1].records.tobytes()
    assert (policy.novelty, policy.blend) == (1.0, 0.0)
    acts = learned(file, fade=False)
    _, others = run(acts, farm())
    assert (acts.novelty, acts.blend) == (1.0, 1.0)
    assert others.records.tobytes() != ours.records.tobytes()


def test_at_the_first_look_nothing_can_be_judged_and_the_base_policy_decides(tmp_path: Path) -> None:
    policy = learned(save(tmp_path / "p.safetensors", random(scale=2.0), base="gsed"))
    base = registry.create("gsed").decide(observation(3)).curves
    assert policy.decide(observation(3)).curves.tobytes() == base.tobytes()
    assert policy.alone
    assert policy.decide(observation(3, now=100.2)).curves.tobytes() != base.tobytes()
    assert not policy.alone


def test_no_strength_is_the_base_policy(tmp_path: Path) -> None:
    policy = learned(save(tmp_path / "p.safetensors", random(scale=2.0)), strength=0.0)
    assert run(policy, farm())[1].records.tobytes() == run("adaptive", farm())[1].records.tobytes()


@pytest.mark.parametrize("why", ["held", "many", "nan"])
def test_the_base_policy_decides_alone_where_the_network_may_not(tmp_path: Path, why: str) -> None:
    policy = learned(save(tmp_path / "p.safetensors", random(scale=2.0), servers_max=4))
    alone = registry.create("adaptive")
    if why == "nan":  # no file can have it: what then, if memory has
        policy.model.network._gates[0][0, 0] = np.nan
    for step in range(5):
        o = observation(5 if why == "many" else 4, now=100.0 + step, reserve="learned" if why == "held" else "off")
        assert policy.decide(o).curves.tobytes() == alone.decide(o).curves.tobytes()
        assert policy.blend == 0.0
        assert policy.alone
    assert policy.invalid == (5 if why == "nan" else 0)


def test_by_default_nothing_is_held_under_a_network_that_has_a_say(tmp_path: Path) -> None:
    """Nothing is trained with flows held back; where it was trained for several balancers alone, one is the base's."""
    for balancers, held in (((1, 8), "off"), ((2, 8), "learned")):
        policy = learned(save(tmp_path / "p.safetensors", random(), ranges=ranges(balancers=balancers)))
        assert policy._as_trained(observation(4, reserve="auto")).reserve == held
        assert policy._as_trained(observation(4, reserve="learned")).reserve == "learned"


# --- the environments ---


@pytest.mark.parametrize("balancers", [1, 2])
def test_it_does_what_the_agent_would_do_in_the_environment(tmp_path: Path, balancers: int) -> None:
    pytest.importorskip("gymnasium", reason="the environments need Gymnasium")
    from controlplane.env.core import Core, Settings
    from controlplane.learned.encoding import encode
    from controlplane.learned.network import Network, decide
    from dataplane._dataplane import ffi, lib

    parameters = random(seed=7, scale=0.5)
    # An agent's steps have no bound, and it acts from the first one on.
    policy = learned(save(tmp_path / "p.safetensors", parameters), change=1e3, fade=False)
    network = Network(parameters, CURVES)
    core = Core(Settings(world=farm(60.0, 0.8, balancers), interval=0.2, base="adaptive"), every_balancer=True)
    reading = core.reset({0: np.random.default_rng(5)})
    hidden, before = network.initial(balancers, 4), reading.counters.copy()
    change = np.zeros_like(before)
    moved = 0.0
    for _ in range(25):
        decided = policy.decide(core.source.observe(0)).curves
        assert decided is not None
        core.prepare()
        base = core.source.orders.base.copy()
        inputs = encode(reading.features, reading.active, change, base, 0.2, balancers)
        rows, whole, hidden = network.forward(inputs, hidden)
        reading = core.step(CURVES.to_action(*decide(CURVES, rows, whole))).reading
        change, before = reading.counters - before, reading.counters.copy()
        published = np.empty((4, POINTS), dtype=np.float32)
        correction = ffi.from_buffer("double[]", core.source.orders.correction[0])
        lib.curves_correct(ffi.from_buffer("float[]", base[0]), correction, 4, ffi.from_buffer("float[]", published))
        within = np.clip(published, base[0] * FLOOR, base[0] * CAP)
        # The environment's features are rounded to 32 bits, the observation's are not.
        assert decided[:, 1:] == pytest.approx(within[:, 1:], rel=2e-3)
        moved = max(moved, float(np.abs(np.log(decided[:, 8] / base[0][:, 8])).max()))
    assert moved > 0.2, "it was not neutral"


# --- bounds ---


@pytest.mark.parametrize("kind", ["oscillating", "random", "greatest"])
@pytest.mark.parametrize("base", ["adaptive", "gsed"])
def test_an_adversarial_network_stays_within_the_bounds(tmp_path: Path, kind: str, base: str) -> None:
    parameters = {
        "oscillating": oscillating(),
        "random": random(scale=20.0),
        "greatest": always(neutral(), CURVES, 4, 1e4),
    }[kind]
    policy = learned(save(tmp_path / "p.safetensors", parameters, base=base))
    alone = registry.create(base)
    factor = None
    watched, result = run(policy, farm())
    signs = set()
    for o, directive in watched.seen:
        theirs = np.minimum(alone.decide(o).curves, 1e30).astype(np.float32).astype(np.float64)
        curves = directive.curves
        assert curves is not None
        some = theirs > 0
        some[:, 0] = False  # a probe bids 0 there
        if base == "adaptive":  # which the window's factor makes another
            assert np.isfinite(curves).all()
            continue
        now = np.divide(curves, theirs, out=np.ones_like(theirs), where=some)
        assert (now[some] >= FLOOR * 0.999999).all()
        assert (now[some] <= CAP * 1.000001).all()
        if factor is not None:
            assert (now <= factor * 1.250001).all()
            assert (now >= factor / 1.250001).all()
            signs |= set(np.sign(now - factor)[some])
        factor = now
    if kind == "oscillating" and base == "gsed":
        assert signs >= {-1.0, 1.0}, "it did go to and fro"
    assert set(result.records["outcome"]) <= {OUTCOME_OK, OPEN}


def test_a_healthy_server_is_not_starved(tmp_path: Path) -> None:
    # At this load the first server's correction, against it, leaves it without any flow.
    file = save(tmp_path / "p.safetensors", neutral(), decode="mode", base="sed")
    policy = learned(file)
    action = np.zeros(3 + 8, dtype=np.float32)
    action[3::2] = 1.0
    action[3], action[4] = -1.0, -1.0

    def step(inputs: Any, hidden: Any) -> Any:
        return action.copy(), hidden

    policy.model.step = step
    world = farm(40.0, 0.3)
    _, result = run(policy, world)
    share = np.bincount(result.records["server"], minlength=4) / len(result.records)
    assert 0.5 * 0.01 / 4 < share[0] < 0.02
    policy = learned(file)
    policy.model.step = step
    policy._explore = lambda o, change: np.zeros(4, dtype=bool)
    _, starved = run(policy, world)
    # Only the time until the correction is reached gave it some.
    late = starved.records[len(starved.records) // 4 :]
    assert (late["server"] == 0).sum() == 0


def test_a_server_that_fails_its_probes_is_asked_less_often(tmp_path: Path) -> None:
    policy = learned(save(tmp_path / "p.safetensors", always(neutral(), CURVES, 4), base="gsed"))
    probes = {True: 0, False: 0}
    for fails in probes:
        flows, outcomes = np.zeros(2), np.zeros((2, len(OUTCOMES)))
        asked = False
        policy = learned(save(tmp_path / "p.safetensors", always(neutral(), CURVES, 4), base="gsed"))
        for step in range(800):
            o = observation(2, now=step * 0.2, flows=flows.copy(), outcomes=outcomes.copy())
            curves = policy.decide(o).curves
            assert curves is not None
            flows[1] += 20
            outcomes[1, 0] += 20
            if asked := bool(curves[0, 0] == 0.0):
                flows[0] += 1
                outcomes[0, 2 if fails else 0] += 1
                probes[fails] += 1
        assert asked in (True, False)
    assert probes[False] > 50
    assert probes[True] < probes[False] / 5


# --- what it remembers ---


def test_what_it_remembers_follows_the_server_s_id(tmp_path: Path) -> None:
    file = save(tmp_path / "p.safetensors", random(scale=0.6), base="gsed")
    rng = np.random.default_rng(4)
    steady, moved = learned(file), learned(file)
    order = np.array([2, 0, 3, 1])
    for step in range(6):
        fields = {
            "in_flight": rng.integers(0, 9, 4).astype(float),
            "flows": np.full(4, 10.0 * step) + rng.integers(0, 9, 4),
        }
        o = observation(4, now=100.0 + step * 0.2, **fields)
        shuffled = {name: values[order] for name, values in fields.items()}
        other = observation(4, now=o.now, ids=o.ids[order], **shuffled)
        wanted = steady.decide(o).curves
        # From the fourth look on the servers stand in another order.
        found = moved.decide(other if step >= 3 else o).curves
        assert wanted is not None
        assert found is not None
        if step != 3:  # there, a row's counters have no row before: all it counted is new
            assert found == pytest.approx(wanted[order] if step >= 3 else wanted, rel=2e-2)


def test_a_new_server_in_an_old_slot_begins_with_nothing(tmp_path: Path) -> None:
    policy = learned(save(tmp_path / "p.safetensors", random(scale=2.0), base="gsed"))
    for step in range(4):
        policy.decide(observation(3, now=step * 0.2))
    assert (policy._factor != 1.0).any()
    assert policy._hidden.any(axis=2).all()
    policy._match_rows(observation(4, ids=np.array([1, 9, 3, 0], dtype=np.uint64)))
    assert policy._hidden.any(axis=2).tolist() == [[True, False, True, False]]
    assert (policy._factor[[1, 3]] == 1.0).all()


def test_the_first_window_is_the_base_policy_s_own_and_the_next_the_network_s(tmp_path: Path) -> None:
    policy = learned(save(tmp_path / "p.safetensors", always(neutral(), CURVES, 4), decode="mode"), fade=False)
    seen: list[float] = []
    decide = policy.base.decide

    def spy(o: Observation) -> Directive:
        seen.append(policy.base.learner.window)
        return decide(o)

    policy.base.decide = spy
    for step in range(3):
        policy.decide(observation(3, now=step * 0.2))
    assert seen == pytest.approx([2000.0, 16000.0, 16000.0])


# --- the papers' action sets ---


@pytest.mark.parametrize("rule", ["sed", "gsed", "alias", "wrr"])
def test_weights_of_the_paper_s_set_are_given_by_their_rule(tmp_path: Path, rule: str) -> None:
    schema = ActionSchema("discrete", levels=(1.0, 1.5, 2.0))
    file = save(tmp_path / "p.safetensors", random(scale=2.0, schema=schema), schema=schema, rule=rule)
    watched, result = run(learned(file, change=100.0, fade=False), farm())
    given = np.array([directive.fitted["weight_given"] for _, directive in watched.seen])
    assert set(np.round(given / given.min(axis=1, keepdims=True), 6).ravel()) <= {1.0, 1.333333, 1.5, 2.0}
    assert {directive.rule for _, directive in watched.seen} == {"bids" if rule in ("sed", "gsed") else rule}
    assert given.sum(axis=1) == pytest.approx(4.0)
    assert set(result.records["outcome"]) <= {OUTCOME_OK, OPEN}


def test_weights_move_by_a_quarter_at_most(tmp_path: Path) -> None:
    schema = ActionSchema("weights", levels=(-1.0, 0.0, 1.0))
    file = save(tmp_path / "p.safetensors", random(scale=1.5, schema=schema), schema=schema)
    watched, _ = run(learned(file, fade=False), farm())
    given = np.array([directive.fitted["weight_given"] for _, directive in watched.seen])
    ratio = given[1:] / given[:-1]
    assert ratio.max() <= 1.25 + 1e-9
    assert ratio.min() >= 0.8 - 1e-9
    assert ratio.max() > 1.2


# --- options ---


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"file": ""}, "file: expected a policy file's name"),
        ({"file": 7}, "file: expected a policy file's name"),
        ({"file": "/nowhere.safetensors"}, "file: /nowhere.safetensors: cannot be read"),
        ({"file": "shipped:nothing"}, "file: shipped:nothing: no such policy in the package"),
        ({"base": "learned"}, "base: expected another policy's name"),
        ({"base": "moods"}, "base: unknown policy 'moods'"),
        ({"base": {"c": 1}}, "base: expected another"),
        ({"strength": 1.5}, "strength: expected a number, 0 … 1"),
        ({"strength": True}, "strength"),
        ({"change": 0.0}, "change: expected a number, 0.001 … 1000"),
        ({"change": float("nan")}, "change"),
        ({"shift_k": 0.6}, "shift_k: expected a number, -0.5 … 0.5"),
        ({"fade": "yes"}, "fade: expected true or false"),
        ({"mood": 1}, "unknown option 'mood'"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    spec = {"name": "learned", "file": str(save(tmp_path / "p.safetensors"))} | options
    with pytest.raises(ValueError, match="policy learned: ") as error:
        registry.create(spec)
    assert expected in str(error.value)
    if "mood" not in options:
        assert isinstance(error.value.__cause__, PolicyError)
        assert error.value.__cause__.option == next(iter(options))


def test_a_file_is_a_policy_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save(tmp_path / "mine.safetensors")
    assert isinstance(registry.create(str(file)), Learned)
    monkeypatch.setattr(registry, "SHIPPED", tmp_path)
    for name in ("mine", "shipped:mine", {"name": "shipped:mine", "strength": 0.5}):
        assert isinstance(registry.create(name), Learned)
    assert registry.create("gsed").name == "gsed"
    with pytest.raises(ValueError, match=r"no such policy in the package; it has: mine"):
        registry.create("shipped:theirs")


def test_what_may_be_tuned_are_attributes_and_options_and_acts_at_once(tmp_path: Path) -> None:
    file = save(tmp_path / "p.safetensors", neutral(), decode="mode", base="gsed")
    policy = learned(file, change=1e3)
    assert set(policy.tunable) == {"strength", "shift_k", "shift_c"}
    for name, (least, most) in policy.tunable.items():
        for value in (least, most):
            assert getattr(learned(file, **{name: value}), name) == value
    base = policy.decide(observation(2)).curves
    assert base is not None
    policy.shift_k = 0.5  # K is twice as large: half of the bound, the logarithm of 4
    curves = policy.decide(observation(2, now=100.2)).curves
    assert curves is not None
    assert curves[:, :20] == pytest.approx(base[:, :40:2])
    schema = ActionSchema("weights", levels=(-1.0, 1.0))
    other = learned(save(tmp_path / "w.safetensors", random(schema=schema), schema=schema))
    assert set(other.tunable) == {"strength"}


def test_it_shows_what_it_corrects(tmp_path: Path) -> None:
    watched, _ = run(learned(save(tmp_path / "p.safetensors", random(scale=1.0))), farm(2.0))
    fitted = watched.seen[-1][1].fitted
    assert {"mu", "k", "delta_mu", "delta_k"} <= set(fitted)
    assert np.abs(fitted["delta_mu"]).max() <= np.log(4.0) + 1e-6


def test_observations_without_features_are_survived(tmp_path: Path) -> None:
    policy = learned(save(tmp_path / "p.safetensors", random(scale=2.0)))
    o = observation(3)
    for bad in (np.nan, np.inf, -1.0):
        values = np.full((3, 11), bad)
        directive = policy.decide(replace(o, now=o.now + 1, read_features=lambda values=values: values))
        check(directive, 3)
