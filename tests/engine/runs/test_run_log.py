"""TensorBoard and W&B hold what metrics.jsonl holds: the same rows, once each, also after a run was set back."""

import re
import time
from pathlib import Path

import pytest
from PIL import Image

from rlpheads.engine.config.run import LogConfig
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.log import RunLog, named_figures
from rlpheads.engine.trackers.tracker import RunLogError

TAPS = (0, "3.attn")


def step_row(step: int, loss: float = 2.0) -> dict:
    return {"kind": "step", "step": step, "epoch": (step - 1) // 4, "class_loss": loss}


def epoch_row(epoch: int, rla: float = 0.25) -> dict:
    return {"kind": "epoch", "step": 4 * (epoch + 1), "epoch": epoch, "eval_loss": 1.0, "rla_clean": [rla, 0.5]}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read TensorBoard's files as TensorBoard does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def opened(folder: RunFolder, step: int = 0, epoch: int = 0, **settings) -> RunLog:
    log = RunLog(folder, LogConfig(**settings), TAPS)
    log.open(step, epoch, {"seed": 0, "optim": {"lr": 0.1}})
    return log


def write(folder: RunFolder, rows: list[dict], **start: int) -> None:
    if folder.tensorboard.exists():
        time.sleep(1)  # TensorBoard takes its files in the order of the seconds in which they were begun
    log = opened(folder, **start)
    for row in rows:
        log.append(row)
    log.close()


def test_names_tell_kinds_and_taps_apart():
    assert dict(named_figures(epoch_row(0) | {"clean_loss": None}, TAPS)) == {
        "epoch/eval_loss": 1.0,
        "epoch/rla_clean/0": 0.25,
        "epoch/rla_clean/3.attn": 0.5,
    }


def test_tensorboard_has_every_row(tmp_path):
    folder = RunFolder(tmp_path)
    write(folder, [step_row(2, 3.0), step_row(4, 2.5), epoch_row(0)])
    assert curves(folder.tensorboard) == {
        "step/class_loss": [(2, 3.0), (4, 2.5)],
        "epoch/eval_loss": [(4, 1.0)],
        "epoch/rla_clean/0": [(4, 0.25)],
        "epoch/rla_clean/3.attn": [(4, 0.5)],
    }


def test_rows_behind_the_checkpoint_are_replaced(tmp_path):
    folder = RunFolder(tmp_path)
    write(folder, [step_row(2), step_row(4), epoch_row(0), step_row(6, 9.0), step_row(8, 9.0), epoch_row(1, 0.875)])
    write(folder, [step_row(6, 1.5), step_row(8, 1.25)], step=4, epoch=1)
    found = curves(folder.tensorboard)
    assert found["step/class_loss"] == [(2, 2.0), (4, 2.0), (6, 1.5), (8, 1.25)]
    assert found["epoch/rla_clean/0"] == [(4, 0.25)]


def test_epochs_line_of_the_checkpoints_own_step_is_replaced_and_the_steps_kept(tmp_path):
    """A run that is stopped after an epoch's last step, and killed while it closes the epoch after it was resumed."""
    folder = RunFolder(tmp_path)
    write(folder, [step_row(2), step_row(4, 1.5), epoch_row(0, 0.875)])
    write(folder, [epoch_row(0, 0.25)], step=4, epoch=0)
    found = curves(folder.tensorboard)
    assert found["step/class_loss"] == [(2, 2.0), (4, 1.5)]
    assert found["epoch/rla_clean/0"] == [(4, 0.25)]


def test_tensorboard_that_is_switched_on_later_is_whole(tmp_path):
    folder = RunFolder(tmp_path)
    log = RunLog(folder, LogConfig(tensorboard=False), TAPS)
    log.append(step_row(2, 3.0))
    log.append(step_row(4, 2.5))
    write(folder, [step_row(6, 1.5)], step=4, epoch=1)
    assert curves(folder.tensorboard)["step/class_loss"] == [(2, 3.0), (4, 2.5), (6, 1.5)]


def test_killed_run_leaves_in_tensorboard_what_its_metrics_say(tmp_path):
    folder = RunFolder(tmp_path)
    log = opened(folder)
    log.append(step_row(2))
    assert curves(folder.tensorboard)["step/class_loss"] == [(2, 2.0)]  # nothing was closed
    log.close()


def test_switched_off_there_is_metrics_jsonl_alone(tmp_path):
    log = opened(RunFolder(tmp_path), tensorboard=False)
    log.append(step_row(2))
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_has_all_taps_in_one_chart_hyperparameters_and_drawings(tmp_path):
    """As TensorBoard reads them: the layout of its custom scalars, the session of its hyperparameters, and images."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    folder = RunFolder(tmp_path)
    Image.new("RGB", (8, 4), "red").save(tmp_path / "drawn.png")
    log = opened(folder)
    log.append(epoch_row(0))
    log.show(4, [tmp_path / "drawn.png", tmp_path / "drawn.svg"])
    log.close()
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert events.Tags()["images"] == ["figures/drawn"]
    assert events.Images("figures/drawn")[0].width == 8
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    first, by_depth = layout.category
    assert [chart.title for chart in first.chart] == ["accuracy of the classes", "random-label accuracy, tap 3.attn"]
    tags = by_depth.chart[0].multiline.tag
    shown = [name for name in curves(folder.tensorboard) if any(re.match(tag, name) for tag in tags)]
    assert shown == ["epoch/rla_clean/0", "epoch/rla_clean/3.attn"]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (settings["optim.lr"].number_value, settings["seed"].number_value) == (0.1, 0)


def test_trackio_gets_the_same_figures_the_first_ones_by_their_words(tmp_path, monkeypatch):
    """With trackio's own store in a folder of the test."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    pytest.importorskip("trackio", reason="trackio is not installed")
    Image.new("RGB", (8, 4), "red").save(tmp_path / "drawn.png")
    folder = RunFolder(tmp_path / "mine")
    folder.path.mkdir()
    for epoch in (0, 1):
        log = opened(folder, 4 * epoch, epoch, tensorboard=False, trackio=True)
        log.append(epoch_row(epoch) | {"eval_top1": 0.5})
        log.show(4 * (epoch + 1), [tmp_path / "drawn.png"])
        log.close()
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("rlpheads", "mine")
    figures = [row for row in rows if "epoch/rla_clean/3.attn" in row]
    assert [row["step"] for row in figures] == [4, 8]
    assert {row["held-out accuracy"] for row in figures} == {0.5}
    assert any("figures/drawn" in row for row in rows)


@pytest.mark.long
def test_wandb_offline_keeps_one_identity_over_resumes(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="W&B is not installed")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    folder, drawn = RunFolder(tmp_path / "mine"), tmp_path / "drawn.png"
    Image.new("RGB", (8, 4), "red").save(drawn)
    for step in (0, 2):
        log = opened(folder, step, tensorboard=False, wandb="offline")
        log.append(step_row(step + 2, 0.15625))
        log.append({**epoch_row(step // 2), "step": step + 2, "eval_top1": 0.5})
        log.show(step + 2, [drawn])
        log.close()
    identity = (folder.path / "wandb" / "run_id.txt").read_text().strip()
    files = sorted(folder.path.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    assert files
    content = b"".join(file.read_bytes() for file in files)
    assert b"step/class_loss" in content
    assert b"0.15625" in content
    for name in (
        b"held-out accuracy",
        b"random-label accuracy, tap 3.attn",
        b"all taps/accuracy, clean pass",
        b"figures/drawn",
    ):
        assert name in content, name


@pytest.mark.long
def test_wandb_online_without_a_login_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="W&B is not installed")
    for name, value in (("HOME", "."), ("NETRC", "none"), ("WANDB_CONFIG_DIR", "config"), ("WANDB_CACHE_DIR", "cache")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there
    with pytest.raises(RunLogError, match=r"W&B cannot begin.*wandb login.*--log\.wandb offline"):
        opened(RunFolder(tmp_path / "mine"), tensorboard=False, wandb="online")
