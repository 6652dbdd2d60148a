"""Every row of the fault matrix on controller, shared memory and policies names tests that exist."""

import ast

import pytest

from tests.faults import ROWS
from tests.faults.running import ROOT


def test_rows_18_to_31_are_covered():
    assert sorted(ROWS) == list(range(18, 32))


@pytest.mark.parametrize("name", sorted({name for names in ROWS.values() for name in names}))
def test_the_tests_named_exist(name):
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
