"""The folder of a study: one that is not a study's is left alone, whatever it holds."""

import pytest
from small_studies import STUDY, study_file

from rlpheads.engine.cli import main
from rlpheads.engine.commands.study_folder import MARK, StudyFolderError, claim_study_folder


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.wrong("not ours")
@pytest.mark.parametrize("names", [["thesis.tex"], ["settings/free.seed3.yaml"], ["free.seed3.log", "study.json"]])
def test_a_folder_of_somebody_else_is_left_as_it_is(tmp_path, names, capsys):
    file, out = study_file(tmp_path, STUDY), tmp_path / "mine"
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    before = snapshot(out)
    assert main(["study", str(file), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{out} holds files, and no study made it" in line
    assert snapshot(out) == before


@pytest.mark.wrong("not ours")
def test_a_file_in_the_place_of_the_folder_is_one_error(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StudyFolderError, match="out cannot be used"):
        claim_study_folder(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_new_empty_and_own_folders_are_taken(tmp_path):
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        claim_study_folder(folder)
        assert (folder / MARK).is_file()
        (folder / "notes.txt").write_text("beside the runs")
    (tmp_path / "empty").mkdir()
    claim_study_folder(tmp_path / "empty")


def test_a_study_from_before_there_was_a_mark_goes_on(tmp_path):
    for name in ("settings/free.seed3.yaml", "free.seed3/.rlpheads-run"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    claim_study_folder(tmp_path)
    assert (tmp_path / MARK).is_file()
