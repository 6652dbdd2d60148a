"""What docs/environments.md tells a reader to run works, block by block."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

from testbed.farm import Farm
from tests.env.live import data_plane

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "environments.md").read_text()
BLOCKS = re.findall(r"^## ([^\n]*)|^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def _named() -> list[tuple[str, str]]:
    """Each block with the heading it stands under."""
    heading, named = "Start", []
    for title, code in BLOCKS:
        if title:
            heading = title
        else:
            named.append((f"{heading} {len(named)}", code))
    return named


@pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3")
@pytest.mark.parametrize(("name", "code"), _named(), ids=[name for name, _ in _named()])
def test_the_pages_code_runs(name, code, tmp_path, monkeypatch):
    if "stable_baselines3" in code and importlib.util.find_spec("stable_baselines3") is None:
        pytest.skip("stable-baselines3 is not installed")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        if 'source="live"' in code:
            farm = stack.enter_context(Farm.of_speeds([1, 2], processes=1))
            plane = stack.enter_context(data_plane(farm.addresses))
            code = code.replace('"main.web"', repr(plane.name))
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"docs/environments.md: {name}", "exec"), {})
    if "print(" in code:
        assert printed.getvalue().strip()
