"""`vickrey policy` on files: shown, checked, listed and refused; and the model cards of those that are shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane import registry
from controlplane.cli import main
from controlplane.config import ConfigError, load
from controlplane.learned import card
from controlplane.learned.policy_file import read
from controlplane.learned.schema import ActionSchema
from controlplane.simulation.scenario import Policy as ScenarioPolicy
from tests.controlplane.admin_double import admin_double
from tests.learned.files import random, save

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(
        tmp_path / "mine.safetensors",
        description="Made by hand, for tests.",
        evaluation={"gate": "passed", "scenarios": [{"name": "default", "mean": 1.25, "heuristic": "adaptive"}]},
    )


# --- show ---


def test_show_tells_what_a_file_is_and_on_what_it_was_trained(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", str(file)]) == 0
    out = capsys.readouterr().out
    found = dict(line.split(maxsplit=1) for line in out.partition("INPUTS")[0].splitlines() if line)
    assert found["agent"] == "none"
    assert found["actions"] == "curves: corrections of the base policy's bid curves"
    assert found["gamma"] == "0.95"
    assert found["servers"] == "trained with 1 to 256, at most 256"
    assert found["bounds"].startswith("mu ×÷4") or "mu ×÷4" in found["bounds"]
    assert found["sha256"] == read(file)[1].sha256
    assert "fct_mean_decay" in out
    assert out.index("n_flow_on") < out.index("bid_slope") < out.index("servers", out.index("bid_slope"))
    assert "gate" in out.partition("EVALUATION")[2]


def test_show_json_is_the_whole_manifest(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["manifest"] == read(file)[1].as_json()
    assert found["weights"] == sum(values.size for values in read(file)[0].values())


def test_the_card_is_markdown_of_all_that(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", str(file), "--card"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# by-hand\n\nMade by hand, for tests.\n")
    assert "| name | mean | heuristic |\n|---|---|---|\n| default | 1.25 | adaptive |" in out
    assert "| server | fct_mean |" in out
    assert str(file.parent) not in out, "where it lies is nobody's business"
    widths = {line.count("|") for line in out.split("## Where")[1].splitlines() if line.startswith("|")}
    assert widths == {7}


def test_a_card_wants_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", "--card"]) == 2
    assert "--card: of which file?" in capsys.readouterr().err


# --- check ---


def test_check_says_that_it_is_right_and_how_long_it_takes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", str(file)]) == 0
    assert capsys.readouterr().out.startswith(f"{file}: ok: none on adaptive, ")


@pytest.mark.parametrize("action", ["check", "show", "set"])
def test_a_bad_file_is_refused_in_one_line(file: Path, action: str, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["policy", action, str(file)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"vickrey policy: {file}: truncated")
    assert len(err.splitlines()) == 1


def test_limits_of_weights_that_make_no_sense_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = ActionSchema("weights", levels=(-1.0, 1.0))
    file = save(tmp_path / "p.safetensors", random(schema=schema), schema=schema, limits={"low": 3.0, "high": 1.0})
    assert main(["policy", "check", str(file), "--json"]) == 1
    assert "manifest.limits: weight limits: expected 0 < low <= high" in capsys.readouterr().out


# --- set ---


def test_set_sends_the_absolute_path(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    (file.parent / "sub").mkdir()
    (file.parent / "sub" / "a.yaml").write_text("{name: learned, file: ../mine.safetensors, strength: 0.5}")
    with admin_double() as api:
        api.answers["POST", "/v1/services/web/policy"] = (200, {})

        def sent(*arguments: str) -> object:
            assert main(["policy", "set", *arguments, "--admin", api.address]) == 0
            return api.changes()[-1][2]

        wanted = {"name": "learned", "file": str(file)}
        assert sent("mine.safetensors") == wanted
        assert sent("./mine.safetensors", "strength=0.25") == wanted | {"strength": 0.25}
        assert sent("learned", "file=mine.safetensors") == wanted
        assert sent("sub/a.yaml") == wanted | {"strength": 0.5}
        monkeypatch.setattr(registry, "SHIPPED", file.parent)
        assert sent("mine") == sent("shipped:mine") == {"name": "learned", "file": "shipped:mine"}
    capsys.readouterr()


def test_set_learned_without_a_file_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "set", "learned"]) == 2
    assert "which file?" in capsys.readouterr().err


# --- list ---


def test_list_has_the_shipped_ones_also_when_one_is_damaged(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (file.parent / "bad.safetensors").write_bytes(b"no")
    monkeypatch.setattr(registry, "SHIPPED", file.parent)
    assert main(["policy", "list", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["shipped:mine"]["description"] == "Made by hand, for tests."
    assert found["shipped:mine"]["aliases"] == ["mine"]
    assert "not a safetensors file" in found["shipped:bad"]["description"]


# --- configuration ---


def configuration(folder: Path, policy: str) -> Path:
    path = folder / "web.yaml"
    path.write_text(
        f"service:\n  web:\n    listen: 127.0.0.1:18080\n    servers: [127.0.0.1:9001]\n    policy: {policy}\n"
    )
    return path


@pytest.mark.parametrize("policy", ["{name: learned, file: mine.safetensors}", "mine.safetensors"])
def test_a_configuration_names_a_file_beside_it(file: Path, policy: str) -> None:
    spec = load(configuration(file.parent, policy)).service["web"].policy.spec()
    assert (spec["name"], spec["file"]) == ("learned", str(file))


@pytest.mark.parametrize(
    ("policy", "at", "expected"),
    [
        ("{name: learned, file: none.safetensors}", "5:29: service.web.policy.file", "No such file"),
        ("{name: learned, file: 7}", "5:29: service.web.policy.file", "expected a policy file's name"),
        ("{name: learned}", "5:5: service.web.policy", "expected a policy file's name"),
        ("{name: learned, file: mine.safetensors, strength: 3}", "5:53: service.web.policy.strength", "0 … 1"),
        ("{name: learned, file: mine.safetensors, strenght: 1}", "service.web.policy.strenght", "did you mean"),
        ("{name: gsed, file: mine.safetensors}", "service.web.policy.file", "unknown option of policy 'gsed'"),
    ],
)
def test_a_configuration_that_is_wrong_is_told_by_line_and_key(file: Path, policy: str, at: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(configuration(file.parent, policy))
    assert at in str(error.value)
    assert expected in str(error.value)


def test_a_scenario_names_a_file_too(file: Path) -> None:
    found = ScenarioPolicy.model_validate(str(file))
    assert found.spec == {"name": "learned", "file": str(file)}
    assert registry.create(found.spec).name == "learned"


# --- what is shipped ---


def test_what_is_shipped_is_right_passed_the_gate_and_has_its_card() -> None:
    assert registry.shipped()
    for name, path in registry.shipped().items():
        parameters, manifest = read(path)
        assert manifest.name == name
        assert manifest.evaluation["gate"] == "passed", name
        assert manifest.evaluation["better"], name
        assert (DOCS / "models" / f"{name}.md").read_text() == card.card(path, parameters, manifest), (
            f"vickrey policy show shipped:{name} --card > docs/models/{name}.md"
        )
