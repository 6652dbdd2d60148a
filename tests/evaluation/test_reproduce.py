"""The papers' comparisons: figures and test beds are theirs, and for what was not trained no figure is made up."""

import json
from pathlib import Path

import numpy as np
import pytest

from controlplane.cli import main
from controlplane.evaluation import reproduce_train, testbeds
from controlplane.evaluation.published import MARLLB, MPG
from controlplane.evaluation.reproduce import AGENTS
from controlplane.simulation.scenario_file import load

SMALL = ("--cases", "small-518.8", "--seeds", "2", "--duration", "6", "--workers", "1")


def run(*arguments: str) -> int:
    return main(["reproduce", *arguments])


def test_the_published_figures_are_the_tables():
    means = {case.rate: case.published for case in MARLLB}
    assert sorted(means) == [518.8, 690.9, 696.5, 796.3]
    assert means[518.8]["sed"] == {"wiki": 67.2, "static": 6.7}
    assert means[690.9]["isac"] == {"wiki": 350, "static": 153}
    assert means[696.5]["qmix"] == {"wiki": 88.0, "static": 4.0}
    assert means[796.3]["ecmp"] == {"wiki": 3019, "static": 2637}
    assert {case.rate: case.published["mpg"]["all"] for case in MPG if case.published} == {759.0: 108, 785.0: 104}


def test_the_test_beds_are_theirs():
    small, large = testbeds.testbed("small"), testbeds.testbed("large")
    assert (small.balancers, sorted(s.workers for s in small.servers)) == (2, [2, 2, 2, 2, 4, 4, 4])
    assert (large.balancers, len(large.servers)) == (6, 24)
    assert sorted(s.weight for s in large.servers) == [4] * 12 + [8] * 12
    # As fast as their share of the cores, and as full as the small one is at 690.9.
    assert {round(s.speed / s.weight, 9) for s in large.servers} == {round(large.servers[0].speed / 4, 9)}
    loads = {case.rate: testbeds.load_of(case) for case in MARLLB}
    assert loads[796.3] == pytest.approx(loads[690.9])
    assert all(0.5 < load < 1 for load in loads.values())


def test_pages_are_of_two_kinds_and_make_the_load():
    case = MARLLB[0]
    arriving = testbeds.traffic(case, 1, 60.0)
    assert len(arriving.times_ns) == round(518.8 * 60)
    assert arriving.static.mean() == pytest.approx(testbeds.share_static(case), abs=0.01)
    assert arriving.works[arriving.static].mean() == pytest.approx(testbeds.STATIC, rel=0.05)
    assert arriving.works[~arriving.static].mean() == pytest.approx(testbeds.WIKI, rel=0.05)
    assert arriving.works.mean() == pytest.approx(testbeds.mean_work(case), rel=0.05)
    again = testbeds.traffic(case, 1, 60.0)
    assert np.array_equal(arriving.works, again.works)


def test_a_tiny_reproduction_end_to_end(tmp_path, capsys):
    out = tmp_path / "out"
    assert run("marllb", *SMALL, "--out", str(out)) == 0
    text = capsys.readouterr().out
    assert "SED, true weights" in text
    assert "(67.2)" in text
    qmix = next(line for line in text.splitlines() if line.startswith("QMIX"))
    assert "not trained (63.4)" in qmix
    assert "pairs of methods are in the published order" in text
    found = json.loads((out / "result.json").read_text())
    (case,) = found["cases"]
    rows = {row["method"]: row for row in case["methods"]}
    assert {"ecmp", "wcmp", "awcmp", "lsq", "sed", *AGENTS, "gsed", "adaptive", "central queue"} <= set(rows)
    for agent in AGENTS:
        assert rows[agent]["missing"] == "not trained"
        assert "wiki" not in rows[agent]
    assert rows["sed"]["wiki"]["against_sed"]["value"] == 1
    assert rows["ecmp"]["all"]["mean"]["mean"] > rows["sed"]["all"]["mean"]["mean"]
    assert rows["sed"]["wiki"]["p99"]["mean"] > rows["sed"]["wiki"]["p90"]["mean"] > rows["sed"]["wiki"]["mean"]["mean"]
    assert (out / "report.html").read_text().count("<svg") == 1
    assert len((out / "runs.csv").read_text().splitlines()) == 1 + len(rows)


def test_the_same_again_is_the_same(capsys):
    texts = []
    for _ in range(2):
        assert run("mpg", "--cases", "small-759", "--seeds", "1", "--duration", "3", "--workers", "1", "--json") == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_a_file_that_is_no_policy_is_told_not_measured(tmp_path, capsys):
    (tmp_path / "qmix.safetensors").write_bytes(b"not a policy")
    assert run("marllb", *SMALL, "--policies", str(tmp_path), "--json") == 0
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    qmix = next(row for row in case["methods"] if row["method"] == "qmix")
    assert "qmix.safetensors" in qmix["missing"]
    assert "all" not in qmix


def test_what_is_trained_is_trained_on_the_same_farm(tmp_path):
    """The scenario's file that a training is given describes the world that its policy is then measured in."""
    for case in (MARLLB[0], MARLLB[3]):
        path = tmp_path / f"{case.bed}.yaml"
        path.write_text(reproduce_train.scenario_text(case))
        scenario = load(str(path))
        mine, theirs = scenario.world(1), testbeds.world_of(case, 1, 5.0)[0]
        assert [s.capacity for s in mine.servers] == pytest.approx([s.capacity for s in theirs.servers], rel=1e-5)
        assert [s.backlog for s in mine.servers] == [s.backlog for s in theirs.servers]
        assert (mine.balancers, mine.split) == (theirs.balancers, theirs.split)
        assert mine.load == pytest.approx(testbeds.load_of(case), rel=1e-4)
        assert scenario.interval == 0.25


def test_only_what_is_missing_is_trained(tmp_path):
    (tmp_path / "small-isac.safetensors").touch()
    (tmp_path / "ssac.safetensors").touch()
    wanted = {(bed, agent): case.name for bed, agent, case in reproduce_train.missing(tmp_path, MARLLB)}
    assert set(wanted) == {(bed, agent) for bed in ("small", "large") for agent in ("isac", "qmix", "mpg")} - {
        ("small", "isac")
    }
    assert wanted["small", "qmix"] == "small-696.5"  # at the highest rate


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (("marllb", "--cases", "small-518"), 2, "did you mean 'small-518.8'"),
        (("marllb", "--seeds", "a"), 2, "expected --seeds"),
        (("marllb", "--duration", "0.1"), 2, "--duration"),
        (("marllb", "--workers", "0"), 2, "--workers"),
        (("marllb", "--train"), 2, "where to?"),
        (("marllb", "--policies", "/nowhere"), 2, "no such folder"),
        (("marllb", "--policies", ".", "--train", "--train-time", "soon"), 2, "--train-time"),
    ],
)
def test_bad_usage_is_named(arguments, status, expected, capsys):
    assert run(*arguments) == status
    assert expected in capsys.readouterr().err


def test_a_paper_is_needed(capsys):
    with pytest.raises(SystemExit) as error:
        run("alphago")
    assert error.value.code == 2


def test_folders_may_hold_one_file_for_both_test_beds(tmp_path: Path):
    from controlplane.evaluation.reproduce import policy_file

    assert policy_file(None, "small", "qmix") is None
    (tmp_path / "qmix.safetensors").touch()
    assert policy_file(tmp_path, "small", "qmix") == tmp_path / "qmix.safetensors"
    (tmp_path / "large-qmix.safetensors").touch()
    assert policy_file(tmp_path, "large", "qmix") == tmp_path / "large-qmix.safetensors"
