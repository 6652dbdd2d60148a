"""What the pages on learning and on the predecessors show of `eval` and `reproduce` is so."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from controlplane.commands import eval as eval_command
from controlplane.commands import reproduce as reproduce_command
from controlplane.evaluation.published import MARLLB, MPG
from controlplane.evaluation.rivals import RIVALS
from controlplane.evaluation.suite import DEFAULT, load
from controlplane.evaluation.testbeds import load_of, mean_work, share_static

DOCS = Path(__file__).parents[2] / "docs"
LEARNING = (DOCS / "learning.md").read_text()
EVALUATION = LEARNING.partition("\n## Evaluation\n")[2].partition("\n## ")[0]
PREDECESSORS = (DOCS / "marllb.md").read_text()


def commands(page: str, name: str) -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith(f"$ vickrey {name}")]
    return [shlex.split(line, comments=True)[2:] for line in lines]


@pytest.mark.parametrize(
    ("page", "name", "module"),
    [
        (EVALUATION, "eval", eval_command),
        (LEARNING, "reproduce", reproduce_command),
        (PREDECESSORS, "reproduce", reproduce_command),
    ],
)
def test_the_command_lines_shown_are_understood(page, name, module):
    lines = commands(page, name)
    assert lines or page is LEARNING
    for line in lines:
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        parser.parse_args(line)


def test_the_suite_shown_is_read(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", EVALUATION, re.DOTALL)
    path = tmp_path / "ours.yaml"
    path.write_text(block)
    suite = load(str(path))
    assert [entry.name for entry in suite.entries] == ["calm", "rush"]
    assert suite.seeds == tuple(range(101, 111))
    assert suite.entries[1].recovery == "after"


def test_the_page_counts_what_there_is():
    suite = load(DEFAULT)
    assert f"The default suite has {len(suite.entries)} scenarios" in EVALUATION
    assert all(f"`{rival.name}`" in EVALUATION for rival in RIVALS)
    assert len(RIVALS) == 12
    assert "all twelve heuristics" in EVALUATION


def test_the_assumptions_on_the_predecessors_page_are_those_in_force():
    for case in (*MARLLB, *MPG):
        rows = [line for line in PREDECESSORS.splitlines() if line.startswith(f"| {case.name} | {case.rate:g} |")]
        assert any(f"| {load_of(case):.2f} |" in row for row in rows), case
    marllb = MARLLB[0]
    assert f"{1e3 * mean_work(marllb):.1f} ms" in PREDECESSORS
    assert f"{100 * share_static(marllb):.0f} % static" in PREDECESSORS
