"""Trains the papers' methods for `vickrey reproduce --train`, with `vickrey train`, on the test beds rebuilt.

As theirs: the weights {1, 1.5, 2} under the rule SED, every 250 ms, episodes of the traffic that they are then measured
in, at its highest rate. The reward is Jain's index of the flows' durations, that of all balancers for S-SAC and QMIX,
each one's own for I-SAC; MPG makes its own of the variance.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from controlplane import registry
from controlplane.command import CommandError
from controlplane.evaluation.published import Bed, Case
from controlplane.evaluation.reproduce import AGENTS, policy_file
from controlplane.evaluation.testbeds import INTERVAL, STATIC, WIKI, share_static, testbed

# Of the published action set, as `vickrey train --set` takes it.
SETTINGS: Final = (
    "action.kind=discrete",
    "action.levels=[1, 1.5, 2]",
    "action.rule=sed",
    f"training.interval={INTERVAL * 1000:g}ms",
    "training.reward=jain",
    "training.base=lsq",  # an agent sees its base's bids: SED's would tell it the weights
)
# Those that learn alone are rewarded for what they see themselves.
ALONE: Final = ("isac", "mpg")


def missing(folder: Path, cases: Sequence[Case]) -> list[tuple[Bed, str, Case]]:
    """Return what is to be trained: test bed, agent, and the case of the highest rate there."""
    hardest: dict[Bed, Case] = {}
    for case in sorted(cases, key=lambda c: c.rate):
        hardest[case.bed] = case
    return [
        (bed, agent, case)
        for bed, case in hardest.items()
        for agent in AGENTS
        if policy_file(folder, bed, agent) is None
    ]


def scenario_text(case: Case) -> str:
    """Return a scenario's file of a case: the same farm and pages, without an end to the traffic."""
    bed = testbed(case.bed)
    first, second = f"{STATIC * 1e3:g}ms", f"{WIKI * 1e3:g}ms"
    servers = [
        f"  - {{workers: {s.workers}, speed: {s.speed:.6g}, weight: {s.weight}, service: {s.service}, "
        f"backlog: {s.backlog}, delay: {s.delay * 1e6:g}us}}"
        for s in bed.servers
    ]
    lines = [
        f"title: The {case.bed} test bed of MARLLB at {case.rate:g} queries a second",
        "servers:",
        *servers,
        f"demand: {{kind: mixed, share: {share_static(case):.6f}, first: {first}, second: {second}}}",
        f"rate: {case.rate:g}",
        f"balancers: {{count: {bed.balancers}, split: hash}}",
        f"interval: {INTERVAL * 1000:g}ms",
        "policies: [sed]",
        "duration: 60s",
        "reference: none",
    ]
    return "\n".join(lines) + "\n"


def train(
    folder: Path, cases: Sequence[Case], seconds: float, settings: Sequence[str], say: Callable[[str], None]
) -> None:
    """Train what is missing, each for so long, one after the other. Raises CommandError when a training fails.

    settings: more of `vickrey train --set`, over those of the papers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for bed, agent, case in missing(folder, cases):
        scenario = folder / f"{bed}.yaml"
        scenario.write_text(scenario_text(case), encoding="utf-8")
        out = folder / f"run-{bed}-{agent}"
        say(f"training {agent} on the {bed} test bed for {seconds:g} s")
        own = ("training.shared_reward=false",) if agent in ALONE else ()
        command = [sys.executable, "-P", "-m", "controlplane.cli", "train", agent, "--scenario", str(scenario)]
        command += ["--seed", "1", "--time", f"{seconds:g}s", "--out", str(out), "--quiet"]
        command += [part for setting in (*SETTINGS, *own, *settings) for part in ("--set", setting)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        # The one that the training ended with. `policy` is the best of the evaluations by mean FCT, the first, before
        # anything was learned, among them: no training of theirs chose so.
        trained = out / f"last{registry.SUFFIX}"
        if done.returncode != 0 or not trained.is_file():
            why = (done.stderr.strip() or done.stdout.strip() or f"it left no {trained}").splitlines()[-1]
            raise CommandError(f"training {agent} failed: {why}")
        shutil.copyfile(trained, folder / f"{bed}-{agent}{registry.SUFFIX}")
