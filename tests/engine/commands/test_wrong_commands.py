"""What is wrong about the arguments of the commands around a run: one line each, and nothing made."""

from pathlib import Path

import pytest
import torch
from small_studies import STUDY, study_file

from rlpheads.engine import exit_codes
from rlpheads.engine.audits.audit_run import AuditOptions
from rlpheads.engine.cli import main
from rlpheads.engine.commands.study_plan import read_study
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.runs.opened_run import RunError

CASES = [
    (["audit", "nowhere"], "there is no run folder nowhere"),
    (["audit", "file.txt"], "there is no run folder file.txt"),
    (["audit", "empty"], "empty is no run folder (it has no config.yaml)"),
    (["audit", "broken"], "broken/config.yaml: not valid YAML: line 1"),
    (["canaries", "nowhere"], "it is no run folder, or nothing was planted; train with --data.canaries.mislabelled"),
    (["canaries", "empty"], "empty has no canaries.parquet"),
    (["canaries", "broken"], "broken/canaries.parquet is no readable Parquet file"),
    (["verify", "--data.root", "nowhere"], "nowhere does not exist"),
    (["verify", "--data.root", "file.txt"], "file.txt is a file, not the folder of a dataset"),
    (["verify", "--data.root", "empty"], "empty must hold one folder for each class: it has none"),
    (["convert", "--data.root", "nowhere", "--out", "store"], "nowhere does not exist"),
    (["convert", "--data.root", "empty", "--out", "store"], "empty must hold one folder for each class"),
    (["convert", "--data.dataset", "digit", "--out", "store"], "did you mean 'digits'?"),
    (["convert", "--data.dataset", "digits", "--out", "file.txt"], "file.txt is a file; a store is a folder"),
    (["study", "nowhere.yaml"], "nowhere.yaml: no such file"),
    (["study", "bad.yaml"], "bad.yaml: not valid YAML: line 1"),
    (["study", "list.yaml"], "list.yaml: got [1] at the top level; allowed: keys and values"),
    (["study", "file.txt"], "allowed: a file that ends in .yaml, .yml, .toml"),
]


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    contents = {"file.txt": "x", "bad.yaml": "arms: [", "list.yaml": "- 1", "broken/config.yaml": "{"}
    for name, content in {**contents, "broken/canaries.parquet": "x"}.items():
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.wrong("command")
@pytest.mark.parametrize(("argv", "message"), CASES, ids=lambda case: " ".join(case) if isinstance(case, list) else "")
def test_wrong_argument_of_a_command(working_folder, argv, message, capsys):
    before = sorted(working_folder.rglob("*"))
    assert main(argv) == exit_codes.WRONG_SETTINGS == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert sorted(working_folder.rglob("*")) == before


@pytest.mark.wrong("command")
@pytest.mark.parametrize(
    ("audit", "message"),
    [
        ("{level: high}", "study.yaml: audit.level: got 'high'; allowed: a finite number"),
        ("{draws: '9'}", "audit.draws: got '9'; allowed: a whole number"),
        ("{taps: [0]}", "audit.taps: got [0]; allowed: text or null"),
        ("{device: gpu}", "audit.device: got 'gpu'; allowed: auto, cpu or cuda"),
    ],
)
def test_wrong_options_of_an_audit_in_a_study(tmp_path, audit, message):
    path = study_file(tmp_path, f"config: base.yaml\narms: {{a: {{}}}}\naudit: {audit}\n")
    with pytest.raises(ConfigError) as caught:
        read_study(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "broken"),
    [
        (["audit", "empty"], "rlpheads.engine.runs.opened_run.open_checkpoint"),
        (["study", "study.yaml", "--out", "out"], "rlpheads.engine.commands.study_plan.plan_runs"),
    ],
)
def test_a_bug_of_ours_is_not_told_as_a_mistake_of_the_user(working_folder, argv, broken, monkeypatch):
    """A ValueError that no check of ours raised, such as NumPy's or PyTorch's."""

    def fail(*_, **__):
        raise ValueError("operands could not be broadcast together")

    study_file(working_folder, STUDY)
    monkeypatch.setattr(broken, fail)
    with pytest.raises(ValueError, match="broadcast"):
        main(argv)


@pytest.mark.wrong("environment")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_audit_on_cuda_where_there_is_none():
    with pytest.raises(RunError, match="^--device is cuda, but .*; allowed here: cpu or auto$"):
        AuditOptions(device="cuda").check()
