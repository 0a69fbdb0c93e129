"""A study's file expanded into runs: arms, grid, seeds, and what is refused before anything is trained."""

from pathlib import Path

import pytest
from small_studies import STUDY, study_file

from rlpheads.engine.cli import main
from rlpheads.engine.commands.study_plan import plan_runs, read_study
from rlpheads.engine.config.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[3] / "studies").glob("*.yaml"))


def test_settings_are_layered_and_seeds_go_outermost(tmp_path):
    path = study_file(tmp_path, STUDY.replace("[3]", "[3, 4]"))
    runs = plan_runs(read_study(path), tmp_path, world_size=1)
    assert [(run.arm, run.seed) for run in runs] == [("free", 3), ("held", 3), ("free", 4), ("held", 4)]
    config = runs[1].config
    assert (config.batch_size, config.seed, config.max_steps) == (32, 3, None)
    assert (config.heads.draws, config.heads.labels) == (2, "auto")
    assert (config.regularizer.kind, config.regularizer.factor) == ("uniform", 1.0)
    assert runs[1].folder == tmp_path / "held.seed3"


def test_one_source_of_chance_is_varied_alone(tmp_path):
    path = study_file(tmp_path, STUDY.replace("[3]", "[3, 4]") + "vary: weights\n")
    runs = plan_runs(read_study(path), tmp_path, world_size=1)
    assert [(run.config.seed, run.config.seeds.weights) for run in runs] == [(0, 3), (0, 3), (0, 4), (0, 4)]


def test_several_sources_of_chance_have_runs_of_their_own(tmp_path):
    path = study_file(tmp_path, STUDY.replace("[3]", "[3, 4]") + "vary: [all, labels]\n")
    runs = plan_runs(read_study(path), tmp_path, world_size=1)
    assert [run.folder.name for run in runs[:4]] == ["free.seed3", "held.seed3", "free.labels3", "held.labels3"]
    assert [(run.config.seed, run.config.seeds.labels) for run in runs[::2]] == [(3, None), (0, 3), (4, None), (0, 4)]


def test_equal_runs_of_several_sources_of_chance_have_one_folder(tmp_path):
    path = study_file(tmp_path, STUDY.replace("[3]", "[0, 1]") + "vary: [all, labels, order]\n")
    runs = [run for run in plan_runs(read_study(path), tmp_path, world_size=1) if run.arm == "free"]
    assert [(run.source, run.seed) for run in runs] == [
        *((None, 0), ("labels", 0), ("order", 0), (None, 1), ("labels", 1), ("order", 1))
    ]
    assert [run.folder.name for run in runs] == [*["free.seed0"] * 3, "free.seed1", "free.labels1", "free.order1"]


def test_a_grid_multiplies_the_arms(tmp_path):
    text = "config: base.yaml\narms: {a: {heads.draws: 3}}\ngrid: {regularizer.factor: [0, 0.5], epochs: [1, 2]}\n"
    study = read_study(study_file(tmp_path, text))
    names = ["a_factor=0_epochs=1", "a_factor=0_epochs=2", "a_factor=0.5_epochs=1", "a_factor=0.5_epochs=2"]
    assert list(study.arms) == names
    assert study.arms[names[3]] == {"heads": {"draws": 3}, "regularizer": {"factor": 0.5}, "epochs": 2}
    assert study.reference == names[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config: base.yaml\n", "nothing to compare"),
        ("arms: {a: {}}\n", "config: got null; allowed: a configuration file"),
        ("config: base.yaml\narm: {a: {}}\n", "arm: got .*nearest: arms"),
        ("config: base.yaml\narms: {a: 2}\n", "arms.a: got 2; allowed: a mapping"),
        ("config: base.yaml\narms: {a: {}}\ngrid: {epochs: 3}\n", "grid.epochs: got 3; allowed: a list"),
        ("config: base.yaml\narms: {a: {}}\nseeds: [0, 0]\n", "seeds: .*each seed once"),
        ("config: base.yaml\narms: {a: {}}\nvary: weight\n", "vary: got 'weight'; allowed: .*nearest: weights"),
        ("config: base.yaml\narms: {a: {}}\nvary: [all, all]\n", "vary: .*each source of chance once"),
        ("config: base.yaml\narms: {a: {}}\nvary: []\n", "vary: .*each source of chance once"),
        ("config: base.yaml\narms: {a: {}}\nseeds: 3\n", "seeds: got 3; allowed: a list of whole numbers"),
        ("config: base.yaml\narms: {a: {}}\nreference: b\n", "reference: got 'b'; allowed: an arm: a"),
        ("config: base.yaml\narms: {a: {}}\naudit: {draws: 2}\n", "at least 4 draws"),
        ("config: base.yaml\narms: {a: {}}\naudit: {drawn: 8}\n", "audit: .*keys among taps, probe"),
    ],
)
def test_what_is_no_study_says_why(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_study(study_file(tmp_path, text))


@pytest.mark.wrong("not ours")
@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (
            "arms: {../../../x: {}}\n",
            r"study.yaml: arm: got '../../../x'; allowed: the name of one folder, without / or",
        ),
        ("arms: {/etc/x: {}}\n", "arm: got '/etc/x'; allowed: the name of one folder"),
        ("arms: {'..\\x': {}}\n", "allowed: the name of one folder"),
        ('arms: {"a\\eb": {}}\n', "allowed: the name of one folder"),
        ("grid: {data.root: [/a, /b]}\n", "arm: got 'root=/a'; allowed: .*give a path as a setting of a named arm"),
        (f"arms: {{{'a' * 198}: {{}}}}\n", "allowed: a shorter name"),
    ],
)
def test_no_arm_lies_outside_the_folder_of_the_study(tmp_path, arms, message):
    inside = tmp_path / "a" / "b" / "c"
    inside.mkdir(parents=True)
    path = study_file(inside, f"config: base.yaml\n{arms}")
    before = sorted(tmp_path.rglob("*"))
    assert main(["study", str(path), "--out", str(inside / "out")]) == 2
    with pytest.raises(ConfigError, match=message):
        read_study(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_arm_that_cannot_be_run_is_named_before_anything_is_trained(tmp_path, capsys):
    path = study_file(tmp_path, "config: base.yaml\narms: {good: {}, bad: {heads.labels: 1}}\n")
    assert main(["study", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "arm bad" in (error := capsys.readouterr().err)
    assert "heads.labels: got 1" in error
    assert not (tmp_path / "out" / "good.seed0").exists()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_can_be_run(path, tmp_path, monkeypatch):
    for variable in ("CIFAR100", "IMAGENET"):
        monkeypatch.setenv(variable, str(tmp_path))
    study = read_study(path)
    runs = plan_runs(study, tmp_path, world_size=1)
    assert len(runs) == len(study.arms) * len(study.seeds) * len(study.vary)
