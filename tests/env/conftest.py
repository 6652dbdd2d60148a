"""What the tests of the environments leave behind is removed."""

import pytest


@pytest.fixture(autouse=True)
def logs_with_the_tests_own_files(tmp_path, monkeypatch):
    """Stable-Baselines3 opens a folder of logs for every training, beside all others' unless told where."""
    monkeypatch.setenv("SB3_LOGDIR", str(tmp_path / "logs"))
