"""What docs/environments.md tells a reader to run works, block by block."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import pytest

from testbed.farm import Farm
from tests.env.live import data_plane

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "environments.md").read_text()
LIVE = 'source="live"'
BLOCKS = re.findall(r"^## ([^\n]*)|^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def _named() -> list[Any]:
    """Each block with the heading it stands under; those before a balancer run alone."""
    heading, named = "Start", []
    for title, code in BLOCKS:
        if title:
            heading = title
        else:
            name = f"{heading} {len(named)}"
            named.append(pytest.param(name, code, id=name, marks=[pytest.mark.live] if LIVE in code else []))
    return named


@pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3")
@pytest.mark.parametrize(("name", "code"), _named())
def test_the_pages_code_runs(name, code, tmp_path, monkeypatch):
    if "stable_baselines3" in code and importlib.util.find_spec("stable_baselines3") is None:
        pytest.skip("stable-baselines3 is not installed")
    # In one process the blocks before it may have done so.
    assert "gymnasium.make" not in code or "import controlplane.env" in code, "LoadBalance-v0 is not registered"
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        if LIVE in code:
            farm = stack.enter_context(Farm.of_speeds([1, 2], processes=1))
            plane = stack.enter_context(data_plane(farm.addresses))
            code = code.replace('"main.web"', repr(plane.name))
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"docs/environments.md: {name}", "exec"), {})
    if "print(" in code:
        assert printed.getvalue().strip()
