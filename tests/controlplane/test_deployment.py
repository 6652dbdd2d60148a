"""A policy comes into force beside its incumbent: in shadow, by share, by switchback; and how each of them ends."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pytest

from controlplane import registry
from controlplane.control_loop import LATE_MAX, REJECTED_MAX, SHADOW_CYCLES
from controlplane.deployment.chosen import Chosen
from controlplane.guard import COOL_DOWN, CoolDown
from controlplane.policy import Directive, Observation
from shm_layout.segment import SettingsData
from tests.learned.files import random, save
from tests.policies.farm import Backend, Farm


class Split:
    """Sends a share `first` of the flows to the first of two servers by lot; misbehaves when it is told to."""

    name = "split"
    tunable: ClassVar = {"first": (0.05, 0.95)}

    def __init__(self, first: float = 0.5) -> None:
        self.first = first
        self.error: Exception | None = None
        self.blend, self.novelty = 1.0, 0.0
        self.decisions = 0

    def decide(self, observation: Observation) -> Directive:
        self.decisions += 1
        if self.error is not None:
            raise self.error
        return Directive(rule="alias", weights=np.array([self.first, 1 - self.first]))


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(registry.BUILT_IN)
    monkeypatch.setattr(registry, "BUILT_IN", {**known, "split": ("split:Split", "test")})
    make = registry.factory
    monkeypatch.setattr(registry, "factory", lambda name: Split if name == "split" else make(name))


class Watched(Farm):
    """A farm that remembers whose directive was in force in each cycle, and what was told."""

    def __init__(
        self,
        policy: Any = "lsq",
        rate: float = 100.0,
        means: tuple[float, ...] = (0.02, 0.02),
        workers: int = 4,
        **loop: Any,
    ) -> None:
        super().__init__([Backend(mean, workers) for mean in means], rate, policy, seed=1, **loop)
        self.in_force: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.answers: list[str | None] = []
        self.loop.on_event = self.events.append

    def publish(self) -> None:
        # Heartbeats are of the real clock, and this one is not: age says nothing here.
        self.version += 1
        self.segment.publish_settings(SettingsData(version=self.version, servers=self.servers, stale_after_ns=0))

    def watch(self, seconds: float) -> Counter[str]:
        """Run on; return in how many cycles each policy was in force."""
        seen: list[str] = []
        self.run(seconds, each=lambda: seen.append(self.segment.read_directive().policy))
        self.in_force += seen
        return Counter(seen)

    def set(self, spec: Any, seconds: float = 2.0) -> None:
        self.loop.swap(spec, self.answers.append)
        self.watch(seconds)
        assert self.answers.pop() is None

    def told(self, what: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["what"] == what]


@pytest.fixture
def farm(split: None):
    with Watched() as made:
        made.watch(2.0)
        yield made


def test_in_shadow_the_incumbent_has_all_of_the_traffic(farm):
    farm.set({"name": "split", "first": 0.9, "mode": "shadow"})
    assert set(farm.watch(4.0)) == {"lsq"}
    assert farm.segment.read_directive().head["enforcing_percent"] == 100
    shown = farm.loop.show()
    assert (shown["policy"], shown["mode"], shown["trial"]["incumbent"]) == ("split", "shadow", {"name": "lsq"})
    assert 0.5 < shown["trial"]["agreement_mean"] < 0.75  # 90 : 10 against about 50 : 50
    assert shown["decisions"]["decisions"] > 20
    (shadowed,) = farm.told("shadowed")
    assert shadowed["shadow"]["decisions"] == SHADOW_CYCLES
    assert shadowed["shadow"]["refused"] == 0


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_a_share_is_a_share_of_the_cycles_and_the_rest_is_the_incumbent_s(farm, percent):
    farm.set({"name": "split", "enforcing": percent})
    seen = farm.watch(20.0)
    assert seen["split"] / seen.total() == pytest.approx(percent / 100, abs=0.03)
    assert set(seen) == {"split", "lsq"}


def test_the_share_changes_in_place_and_the_policy_goes_on_with_what_it_knows(farm):
    farm.set({"name": "split", "first": 0.6, "enforcing": 10})
    policy = farm.loop.chosen.policy
    farm.set({"enforcing": 50})
    seen = farm.watch(10.0)
    assert seen["split"] == pytest.approx(seen["lsq"], abs=3)
    farm.set({"name": "split", "first": 0.6})  # the same policy: all of the traffic
    assert set(farm.watch(2.0)) == {"split"}
    assert farm.loop.chosen.policy is policy
    assert farm.loop.trial is None
    assert list(farm.loop.history) == [{"name": "lsq"}]
    assert [(e["before"], e["now"]) for e in farm.told("share")] == [("10 %", "50 %"), ("50 %", "100 %")]


def test_a_policy_in_force_can_be_taken_back_to_a_share(farm):
    farm.set({"name": "split"})
    farm.set({"enforcing": 20})
    seen = farm.watch(10.0)
    assert seen["split"] / seen.total() == pytest.approx(0.2, abs=0.05)
    assert seen["lsq"] > 0


def test_rollback_of_a_trial_is_at_once_and_the_incumbent_never_stopped_learning(farm):
    farm.set("adaptive")
    adaptive = farm.loop.chosen.policy
    farm.set({"name": "split", "enforcing": 30})
    farm.loop.rollback(farm.answers.append)
    assert set(farm.watch(1.0)) == {"adaptive"}
    assert farm.answers == [None]
    assert farm.loop.chosen.policy is adaptive
    assert list(farm.loop.history) == [{"name": "lsq"}]


def test_a_rollback_takes_back_what_is_in_shadow_and_what_is_in_force_stays(farm):
    """Whoever sets a policy and rolls back has the one from before, whether it was in force already or not."""
    farm.set("adaptive")
    farm.loop.swap("wrr", farm.answers.append)
    farm.watch(0.3)
    farm.loop.rollback(farm.answers.append)
    assert set(farm.watch(3.0)) == {"adaptive"}
    assert farm.answers == ["it was rolled back meanwhile", None]
    assert list(farm.loop.history) == [{"name": "lsq"}]
    (refused,) = farm.told("refused")
    assert (refused["policy"], refused["why"]) == ("wrr", "it was rolled back meanwhile")


def test_a_rollback_of_a_trial_takes_back_what_is_in_shadow_too(farm):
    farm.set({"name": "split", "enforcing": 30})
    farm.loop.swap("wrr", farm.answers.append)
    farm.watch(0.3)
    farm.loop.rollback(farm.answers.append)
    assert set(farm.watch(3.0)) == {"lsq"}
    assert farm.answers == ["it was rolled back meanwhile", None]


def test_why_a_policy_cannot_be_made_is_put_on_record(farm):
    with pytest.raises(RuntimeError, match="no such module"):
        farm.loop.swap("wrr", farm.answers.append, made=RuntimeError("no such module"))
    assert [(e["policy"], e["why"]) for e in farm.told("refused")] == [("wrr", "no such module")]
    assert set(farm.watch(2.0)) == {"lsq"}


def test_another_policy_ends_the_trial_and_keeps_its_incumbent(farm):
    farm.set({"name": "split", "enforcing": 30})
    farm.set({"name": "wrr", "enforcing": 30})
    assert set(farm.watch(5.0)) == {"wrr", "lsq"}
    assert list(farm.loop.history) == [{"name": "lsq"}]


def test_a_policy_on_trial_that_fails_costs_the_incumbent_nothing(farm):
    farm.set({"name": "split", "enforcing": 50})
    farm.loop.chosen.policy.error = ZeroDivisionError("by design")
    farm.watch(0.2 * (REJECTED_MAX + 2))
    assert set(farm.watch(2.0)) == {"lsq"}
    assert farm.loop.chosen.name == "lsq"
    assert farm.loop.counts.demotions == 1
    (demoted,) = farm.told("demoted")
    assert demoted["to"] == "lsq"
    assert "by design" in demoted["why"]


def test_an_incumbent_that_fails_is_replaced_and_the_trial_goes_on(farm):
    farm.set({"name": "split", "first": 0.5})
    farm.set({"name": "wrr", "enforcing": 50})
    farm.loop.trial.incumbent.chosen.policy.error = ZeroDivisionError("by design")
    farm.watch(0.2 * (REJECTED_MAX + 2))
    assert set(farm.watch(4.0)) == {"wrr", "lsq"}
    assert farm.loop.chosen.name == "wrr"
    # For good: neither another share nor the next controller brings the failing one back.
    assert farm.loop.chosen.spec["incumbent"] == {"name": "lsq"}
    assert [spec["name"] for spec in farm.loop.history] == ["lsq", "lsq"]
    farm.set({"enforcing": 60})
    assert set(farm.watch(4.0)) == {"wrr", "lsq"}


def test_an_incumbent_that_was_named_and_fails_costs_no_version_of_the_history(farm):
    farm.set("p2c")
    farm.set({"name": "wrr", "enforcing": 50, "incumbent": {"name": "split"}})
    farm.loop.trial.incumbent.chosen.policy.error = ZeroDivisionError("by design")
    farm.watch(0.2 * (REJECTED_MAX + 2))
    assert farm.loop.trial.incumbent.chosen.name == "lsq"
    assert [spec["name"] for spec in farm.loop.history] == ["lsq", "p2c"]


def test_what_was_given_up_cools_down_unless_it_is_forced(farm):
    farm.set("split")
    farm.loop.chosen.policy.error = KeyError("x")
    farm.watch(2.0)
    assert farm.loop.demoted
    with pytest.raises(ValueError, match=r"cools down for \d+ s more \(demoted"):
        farm.loop.swap("split", farm.answers.append)
    assert farm.told("refused")[-1]["why"].endswith("--force sets it at once")
    farm.set({"name": "split", "force": True})
    assert farm.loop.chosen.name == "split"
    assert "force" not in farm.loop.chosen.spec
    farm.loop.chosen.policy.error = KeyError("x")
    farm.watch(COOL_DOWN + 4.0)
    farm.set("split")


def test_the_next_controller_keeps_out_what_cools_down():
    first = CoolDown()
    first.begin("split", 100.0, "demoted")
    told = json.loads(json.dumps(list(first)))
    assert CoolDown(told).left("split", 110.0) == (COOL_DOWN - 10.0, "demoted")
    assert CoolDown(told).left("split", 0.0)[0] == COOL_DOWN  # before its first look it has no clock
    assert CoolDown(told).left("wrr", 110.0)[0] == 0.0


def test_a_switchback_reverts_what_is_worse(farm):
    """90 % of the flows to one of two equal servers, which can serve 200 a second: its queue grows."""
    farm.rate = 260.0
    farm.watch(2.0)
    farm.set({"name": "split", "first": 0.9, "switchback": {"seconds": 4, "pairs": 8}})
    before = farm.loop.chosen.policy.decisions
    for _ in range(40):
        farm.watch(4.0)
        if farm.loop.trial is None:
            break
    assert farm.loop.chosen.name == "lsq"
    result = farm.loop.show()["switchback"]
    assert result["state"] in ("worse", "harm")
    assert result["candidate"] == "split"
    (told,) = farm.told("switchback")
    assert told["keeps"] == "lsq"
    assert farm.loop.counts.rollbacks == 1
    assert before > 0
    with pytest.raises(ValueError, match="cools down"):
        farm.loop.swap({"name": "split", "first": 0.9}, farm.answers.append)


def test_a_switchback_keeps_what_is_better(split):
    with Watched({"name": "split", "first": 0.8}, rate=240.0) as farm:
        farm.watch(2.0)
        farm.set({"name": "lsq", "switchback": {"seconds": 4, "pairs": 8}})
        for _ in range(40):
            farm.watch(4.0)
            if farm.loop.trial is None:
                break
        assert farm.loop.chosen.spec == {"name": "lsq"}
        assert farm.loop.show()["switchback"]["state"] in ("better", "no worse")
        assert [spec["first"] for spec in farm.loop.history] == [0.8]
        assert set(farm.watch(1.0)) == {"lsq"}


def test_blocks_must_be_longer_than_a_few_intervals(farm):
    with pytest.raises(ValueError, match="at least 1 s"):
        farm.loop.swap({"name": "split", "switchback": 0.5}, farm.answers.append)


def test_a_new_controller_goes_on_with_the_trial(split):
    spec = {"name": "split", "enforcing": 40, "incumbent": {"name": "gsed", "c": 0.3}}
    with Watched(spec, history=[{"name": "wrr"}, {"name": "gsed", "c": 0.3}]) as farm:
        seen = farm.watch(10.0)
        assert seen["split"] / seen.total() == pytest.approx(0.4, abs=0.05)
        assert seen["gsed"] > 0
        farm.loop.rollback(farm.answers.append)
        farm.watch(0.5)
        assert farm.loop.chosen.spec == {"name": "gsed", "c": 0.3}
        assert list(farm.loop.history) == [{"name": "wrr"}]


def test_a_version_comes_back_as_it_was_although_its_file_is_another_by_now(farm, tmp_path):
    file = tmp_path / "p.safetensors"
    spec = {"name": "learned", "file": str(save(file, random(seed=1)))}
    farm.set(dict(spec))
    first = farm.loop.chosen
    save(file, random(seed=2))
    farm.set(dict(spec))
    assert farm.loop.chosen.sha256 != first.sha256
    farm.set({"enforcing": 50})  # the file is not read again for that
    farm.set({"enforcing": 100})
    file.unlink()
    farm.loop.rollback(farm.answers.append)
    farm.watch(2.0)
    assert farm.answers == [None]
    assert farm.loop.chosen.policy is first.policy
    assert farm.loop.chosen.spec["sha256"] == first.sha256


def test_a_new_controller_goes_back_only_to_the_file_that_was_in_force(split, tmp_path):
    file = save(tmp_path / "p.safetensors", random(seed=1))
    before = Chosen({"name": "learned", "file": str(file)}).spec
    save(file, random(seed=2))
    with Watched("wrr", history=[before]) as farm:
        with pytest.raises(ValueError, match="not the file that is meant"):
            farm.loop.rollback(farm.answers.append)
        save(file, random(seed=1))
        farm.loop.rollback(farm.answers.append)
        farm.watch(2.0)
        assert farm.loop.chosen.spec == before


def test_without_an_incumbent_the_fallback_has_the_rest(split):
    with Watched({"name": "split", "enforcing": 40}) as farm:
        farm.watch(1.0)
        assert farm.loop.trial is None
        assert farm.segment.read_directive().head["enforcing_percent"] == 40


def test_a_policy_that_trusts_its_heuristic_more_is_on_record_once(farm):
    farm.set("split")
    policy = farm.loop.chosen.policy
    for blend in (0.8, 0.4, 0.45, 0.55, 0.4, 0.7, 0.9):
        policy.blend = blend
        farm.watch(0.5)
    assert [e["blend"] for e in farm.events if e["what"] in ("novel", "familiar")] == [0.4, 0.7]
    assert farm.loop.show()["blend"] == 0.9


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"enforcing": 101}, "enforcing: expected 0 … 100"),
        ({"enforcing": True}, "enforcing: expected 0 … 100"),
        ({"mode": "sometimes"}, "expected enforce or shadow"),
        ({"switchback": "soon"}, "switchback seconds: expected"),
        ({"switchback": {"second": 1}}, "unknown key 'second'"),
        ({"switchback": 10, "mode": "shadow"}, "neither share nor shadow"),
        ({"incumbent": {"c": 1}}, "incumbent: expected a policy"),
        ({"incumbent": {"name": "lsq", "enforcing": 3}}, "option of the policy on trial"),
        ({"incumbent": "nosuch", "enforcing": 5}, "unknown policy"),
        ({"adapt": -1}, "adapt: expected"),
        ({"guard": 3}, "guard: expected true or false"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused_and_on_record(farm, spec, says):
    for asked in ({"name": "split", **spec}, spec):
        with pytest.raises(ValueError, match=says):
            farm.loop.swap(asked, farm.answers.append)
        assert says in farm.told("refused")[-1]["why"]
    assert farm.loop.chosen.spec == {"name": "lsq"}


def test_a_policy_with_nothing_to_tune_does_not_adapt(farm):
    with pytest.raises(ValueError, match="no parameters that could be tuned"):
        farm.loop.swap({"name": "wrr", "adapt": True}, farm.answers.append)


def run_adapting(farm: Watched, seconds: float) -> list[dict[str, Any]]:
    farm.watch(seconds)
    return farm.told("adapted")


def test_adaptation_finds_what_is_better_and_a_new_controller_begins_with_it(split):
    """The first server is five times as fast: every step towards it is better."""
    policy = {"name": "split", "first": 0.4, "adapt": 4, "guard": False}
    with Watched(policy, rate=300.0, means=(0.004, 0.02), workers=32) as farm:
        changes: list[Any] = []
        farm.loop.on_change = lambda spec, why: changes.append(spec)
        steps = run_adapting(farm, 300.0)
        kept = [step for step in steps if step["kept"]]
        assert kept
        assert farm.loop.tuner.values["first"] > 0.5
        assert changes[-1]["first"] == farm.loop.tuner.values["first"]
        assert all(0.05 <= step["tried"]["first"] <= 0.95 for step in steps)
        shown = farm.loop.show()["adapt"]
        assert shown["kept"] == len(kept)
        assert shown["began_with"] != shown["values"] or len(kept) == 0


def test_a_policy_file_is_fine_tuned_inside_its_bounds(tmp_path):
    file = save(tmp_path / "mine.safetensors", random(scale=1.0), base="gsed")
    policy = {"name": "learned", "file": str(file), "adapt": 4, "guard": False}
    with Watched(policy, rate=300.0, means=(0.004, 0.02), workers=32) as farm:
        steps = run_adapting(farm, 150.0)
        assert steps
        for tried in (step["tried"] for step in steps):
            assert set(tried) == {"strength", "shift_k", "shift_c"}
            assert 0.0 <= tried["strength"] <= 1.0
            assert max(abs(tried["shift_k"]), abs(tried["shift_c"])) <= 0.5
        assert farm.loop.tuner.values == {
            name: getattr(farm.loop.chosen.policy, name) for name in farm.loop.tuner.values
        }
        assert farm.segment.read_directive().policy == "learned"


def test_adaptation_keeps_no_step_that_is_worse(split):
    """From the middle every step is worse: it stays, and steps shrink."""
    with Watched({"name": "split", "first": 0.5, "adapt": 3, "guard": False}, rate=300.0) as farm:
        steps = run_adapting(farm, 150.0)
        assert steps
        assert not any(step["kept"] for step in steps)
        assert farm.loop.tuner.values == {"first": 0.5}
        farm.set({"adapt": False})
        assert farm.loop.tuner is None
        assert farm.loop.chosen.policy.first == 0.5


# --- the guard --------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet(split: None):
    """Five flows a second, the first server twenty times as slow as the second, and not used."""
    with Watched({"name": "split", "first": 0.0}, rate=5.0, means=(0.4, 0.02), workers=32) as made:
        made.watch(330.0)
        yield made


def test_with_little_traffic_a_policy_that_harms_is_rolled_back(quiet):
    quiet.set({"name": "split", "first": 1.0})
    assert quiet.loop.show()["guard"] == "watching"
    quiet.watch(90.0)
    assert quiet.loop.chosen.spec == {"name": "split", "first": 0.0}
    (told,) = quiet.told("rolled back")
    assert (told["who"], told["to"]) == ("guard", "split")
    assert "take longer than the p99 before" in told["why"]


def test_with_little_traffic_a_policy_that_does_no_harm_stays_and_is_watched_for_minutes(quiet):
    quiet.set({"name": "split", "first": 0.001})
    quiet.watch(120.0)
    assert quiet.loop.show()["guard"] == "watching"
    quiet.watch(150.0)
    assert quiet.loop.show()["guard"] == "off"
    assert "guard_why" not in quiet.loop.show()
    assert quiet.loop.chosen.spec == {"name": "split", "first": 0.001}
    assert not quiet.told("rolled back")


def test_a_policy_that_cannot_be_guarded_says_why(quiet, caplog):
    quiet.set({"name": "split", "first": 0.001})
    quiet.set({"name": "split", "first": 1.0})  # the one before was not in force for long enough to compare with
    shown = quiet.loop.show()
    assert shown["guard"] == "off"
    why = r"too little traffic to guard: 1\d\d flows in (29|30) s; at least 500 needed"
    assert re.fullmatch(why, shown["guard_why"])
    assert re.fullmatch(why, quiet.told("enforced")[-1]["guard"])
    assert "policy split: guard off: too little traffic to guard" in caplog.text
    quiet.set({"guard": False})  # asked for: nothing to explain
    assert "guard_why" not in quiet.loop.show()
    assert quiet.told("enforced")[-1]["guard"] == "off"


def test_late_decisions_on_trial_end_it(farm, monkeypatch):
    farm.set({"name": "split", "enforcing": 50})
    decider = farm.loop.decider
    inner = decider.decide

    def late(o: Observation, within: float) -> Directive | None:
        row = decider.late_row
        inner(o, np.inf)
        decider.late, decider.late_row = decider.late + 1, row + 1
        return None

    monkeypatch.setattr(decider, "decide", late)
    farm.watch(0.2 * (LATE_MAX + 3))
    assert farm.loop.chosen.name == "lsq"
    assert "came late" in farm.told("demoted")[0]["why"]
