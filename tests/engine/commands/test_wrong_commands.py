"""What is wrong about the arguments of the commands around a run: one line each, and nothing made."""

from pathlib import Path

import pytest
import torch

from rlpheads.engine import exit_codes
from rlpheads.engine.cli import main
from rlpheads.engine.commands.audit_run import AuditOptions
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


@pytest.mark.wrong("environment")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_audit_on_cuda_where_there_is_none():
    with pytest.raises(RunError, match="^--device is cuda, but .*; allowed here: cpu or auto$"):
        AuditOptions(device="cuda").check()
