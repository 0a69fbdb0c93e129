"""`python -m rlpheads.kernels.tools.tune`, the file that it writes, and the loss that reads it."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with torch's CUDA build only")

import triton_tuning
from triton_interpreter import Interpreter

from rlpheads.kernels.gpu import triton_loss
from rlpheads.kernels.gpu.triton_tiles import KNOWN_CHIPS, TileConfig, chip_tiles
from rlpheads.kernels.gpu.tuned_tiles import (
    FILE_VARIABLE,
    FORMAT,
    TuningCase,
    Winner,
    read_winners,
    record,
    save_winner,
    select_tiles,
    tiles_file,
)
from rlpheads.kernels.tools import tune
from rlpheads.kernels.tools.tune import Timing, fastest_tiles

ONE, TWO, THREE = (TileConfig(rows, 128, 64, warps=8, stages=3, tma=True) for rows in (128, 64, 32))
CASE = TuningCase(
    "a GPU", "3.8.0", "bfloat16", rows=512, features=768, classes=100_000, pair=False, base=False, bias=False
)
ENTRY = {**asdict(CASE), **asdict(Winner(TWO, 1.5, 2.0))}


@pytest.mark.long
def test_the_command_writes_what_the_loss_takes(interpreter: Interpreter, tmp_path: Path) -> None:
    interpreter(triton_tuning.assert_the_command_writes_what_the_loss_takes, tmp_path)


@pytest.mark.long
def test_the_loss_takes_measured_tiles_for_their_case_alone(interpreter: Interpreter, tmp_path: Path) -> None:
    interpreter(triton_tuning.assert_the_loss_takes_measured_tiles_for_their_case_alone, tmp_path)


@pytest.mark.long
def test_wrong_tiles_are_found_out(interpreter: Interpreter, tmp_path: Path) -> None:
    interpreter(triton_tuning.assert_wrong_tiles_are_found_out, tmp_path)


@pytest.mark.long
@pytest.mark.wrong("environment")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ('{"format": "rlpheads til', "Unterminated string"),
        ("[]", "list indices must be integers"),
        ('{"device": "x"}', "it has no 'format'"),
        ('{"format": "rlpheads tiles 3", "winners": []}', f"its format is 'rlpheads tiles 3', not '{FORMAT}'"),
        (json.dumps({"format": FORMAT, "winners": [{**ENTRY, "rows": "512"}]}), "rows is '512'"),
        (json.dumps({"format": FORMAT, "winners": [{**ENTRY, "tiles": {"rows": 64}}]}), "it has no 'classes'"),
        (None, "No such file"),
    ],
    ids=["empty", "broken off", "a list", "another's", "of another version", "a wrong type", "incomplete", "missing"],
)
def test_an_unusable_file_stops_the_loss(
    interpreter: Interpreter, tmp_path: Path, text: str | None, reason: str
) -> None:
    path = tmp_path / "tiles.json"
    if text is not None:
        path.write_text(text)
    interpreter(triton_tuning.assert_an_unusable_file_stops_the_loss, path, reason)


@pytest.mark.wrong("environment")
def test_tiles_that_are_no_candidate_stop_the_loss(interpreter: Interpreter, tmp_path: Path) -> None:
    interpreter(triton_tuning.assert_tiles_that_are_no_candidate_stop_the_loss, tmp_path / "tiles.json")


def test_a_winner_joins_the_others_and_replaces_its_own(tmp_path: Path) -> None:
    path, other = tmp_path / "deep" / "tiles.json", replace(CASE, rows=64)
    save_winner(path, CASE, Winner(ONE, 2.0, 2.0))
    save_winner(path, other, Winner(TWO, 1.0, 2.0))
    save_winner(path, CASE, Winner(THREE, 1.5, 2.0))
    assert read_winners(path) == {CASE: Winner(THREE, 1.5, 2.0), other: Winner(TWO, 1.0, 2.0)}
    assert list(path.parent.iterdir()) == [path]


def test_an_unusable_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    path.write_text("mine")
    with pytest.raises(ValueError, match="holds no tiles"):
        save_winner(path, CASE, Winner(ONE, 1.0, 1.0))
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiles_file() is None, "tests read no file of this machine's"
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "of-a-job.json"))
    assert tiles_file() == tmp_path / "of-a-job.json"
    monkeypatch.delenv(FILE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tiles_file() == tmp_path / "rlpheads" / "tiles.json"
    assert select_tiles(CASE, (ONE, TWO)) == ONE, "the cache folder need not hold one"
    save_winner(tmp_path / "rlpheads" / "tiles.json", CASE, Winner(TWO, 1.0, 2.0))
    assert select_tiles(CASE, (ONE, TWO)) == TWO


def test_without_a_home_folder_there_are_no_measured_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry(user: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for name in (FILE_VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    assert tiles_file() is None
    assert record() is None
    assert select_tiles(CASE, (ONE, TWO)) == ONE


def test_the_file_is_read_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever measures while a run goes on does not change it."""
    path = tmp_path / "tiles.json"
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    save_winner(path, CASE, Winner(TWO, 1.0, 2.0))
    assert select_tiles(CASE, (ONE, TWO)) == TWO
    text = path.read_text()
    path.write_text(text.replace('"rows": 64', '"rows": 128'))
    assert select_tiles(CASE, (ONE, TWO)) == TWO


def test_the_record_of_a_run_holds_the_measured_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiles.json"
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    assert record() is None
    save_winner(path, CASE, Winner(TWO, 1.5, 2.0))
    one = record()
    assert one is not None
    assert one["winners"] == [ENTRY]
    assert str(tmp_path) not in json.dumps(one)
    save_winner(path, CASE, Winner(ONE, 1.5, 2.0))
    assert record() != one
    path.write_text("?")
    damaged = record()
    assert damaged is not None
    assert damaged["winners"] is None
    assert damaged["sha256"] not in (None, one["sha256"])
    path.unlink()
    path.mkdir()
    assert record() == {"sha256": None, "winners": None}


@pytest.mark.parametrize(
    ("times", "tiles", "milliseconds"),
    [
        ((2.0, 1.0, 3.0), TWO, 1.0),
        ((2.0, 1.97, 3.0), ONE, 2.0),  # too little to be sure of
        ((2.0, 1.9, 1.8), THREE, 1.8),
        ((2.0, None, 1.8), THREE, 1.8),
        ((2.0, None, None), ONE, 2.0),
    ],
)
def test_the_usual_tiles_stay_unless_others_are_clearly_faster(
    times: tuple[float | None, ...], tiles: TileConfig, milliseconds: float
) -> None:
    timings = [Timing(tiles, time) for tiles, time in zip((ONE, TWO, THREE), times, strict=True)]
    assert fastest_tiles(timings) == Winner(tiles, milliseconds, 2.0)


def test_nothing_is_kept_where_the_usual_tiles_do_not_run() -> None:
    assert fastest_tiles([Timing(ONE, None, "too much shared memory"), Timing(TWO, 1.0)]) is None


@pytest.mark.parametrize("chip", [*KNOWN_CHIPS, 89, 75, 120])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("num_rows", [1, 64, 65, 1024])
def test_every_chip_has_a_few_different_candidates(chip: int, dtype: torch.dtype, num_rows: int) -> None:
    for pair, base, bias in product((False, True), repeat=3):
        found = chip_tiles(chip, dtype, num_rows, pair=pair, base=base, bias=bias)
        assert 2 <= len(found) == len(set(found)) <= 4
        assert all(tiles.rows == 64 for tiles in found) or num_rows > 64


# ------------------------------------------------------------------------------------------------------- the command line


SHAPE = ["--rows", "8", "--features", "16", "--classes", "100"]


def tune_output(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert tune.main(arguments) == 2
    return capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
@pytest.mark.wrong("environment")
def test_there_is_nothing_to_measure_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    out = tune_output(SHAPE, capsys)
    assert "nothing to measure: the loss by Triton runs on a CUDA GPU; the features are on cpu" in out
    assert "TRITON_INTERPRET=1" in out


@pytest.mark.wrong("environment")
def test_what_stands_in_the_way_is_told_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_loss, "INTERPRETS", True)
    assert (
        f"nowhere to write: {FILE_VARIABLE} is empty, or there is no home folder; name a file by --file"
        in tune_output(SHAPE, capsys)
    )
    (tmp_path / "tiles.json").write_text("mine")
    assert "holds no tiles for the loss" in tune_output([*SHAPE, "--file", str(tmp_path / "tiles.json")], capsys)
    below = tmp_path / "tiles.json" / "below"
    assert f"nowhere to write: no file can be made in {below.parent} (" in tune_output(
        [*SHAPE, "--file", str(below)], capsys
    )
    assert "no file can be made in /proc (" in tune_output([*SHAPE, "--file", "/proc/tiles.json"], capsys)


@pytest.mark.wrong("command")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --rows, --features, --classes"),
        ([*SHAPE, "--rows", "0"], "argument --rows: must be 1 or more, got 0"),
        ([*SHAPE, "--dtype", "float64"], "invalid choice: 'float64' (choose from 'bfloat16', 'float16', 'float32')"),
        ([*SHAPE, "--regularizer", "dropout"], "invalid choice: 'dropout'"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tune.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.long
def test_help_needs_no_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlpheads.kernels.tools.tune", "--help"], capture_output=True, text=True, check=True
    )
    assert "RLPHEADS_TILES" in done.stdout
