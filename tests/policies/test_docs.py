"""The policy on the page on policies works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from controlplane import registry
from controlplane.directive import check
from tests.policies.observations import observation

PAGE = (Path(__file__).parents[2] / "docs/policies.md").read_text()


def test_the_policy_that_is_shown_decides():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, type] = {}
    exec(code, scope)
    policy = scope["LeastErrors"](penalty=5.0)
    policy.decide(observation(3))
    outcomes = np.zeros((3, 7))
    outcomes[1, 1] = 2
    directive = policy.decide(observation(3, now=101.0, outcomes=outcomes))
    check(directive, 3)
    assert list(directive.curves[:, 0]) == [0.0, 10.0, 0.0]


def test_every_policy_and_alias_has_its_row():
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\|([^|]*)\|", PAGE, re.MULTILINE))
    assert set(rows) == set(registry.BUILT_IN)
    for alias, name in registry.ALIASES.items():
        assert f"`{alias}`" in rows[name] or alias == "round_robin"
