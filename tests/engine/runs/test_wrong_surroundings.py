"""What can be wrong about ranks, run folders and checkpoints, and the one line that each of them earns."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rlpheads.engine import exit_codes, train
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed.launch import Rank
from rlpheads.engine.runs.checkpoint import CheckpointError, read_manifest, verify
from rlpheads.engine.runs.folder import RunFolder, RunFolderError, claim
from rlpheads.engine.runs.opened_run import list_checkpoints
from rlpheads.engine.runs.resume import find_resume_point
from rlpheads.engine.runs.sources import open_sources

LAUNCHER = "torchrun sets these environment variables; without it, set all or none of them"
PLACE = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.wrong("environment")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"RANK": "zero"}, f"RANK: got 'zero'; allowed: a number from 0; {LAUNCHER}"),
        ({"RANK": "-1"}, f"RANK: got '-1'; allowed: a number from 0; {LAUNCHER}"),
        ({"RANK": "9" * 5000}, f"RANK: got '{'9' * 298}…; allowed: a number from 0; {LAUNCHER}"),
        ({"WORLD_SIZE": ""}, f"WORLD_SIZE: got ''; allowed: a number from 1; {LAUNCHER}"),
        ({"WORLD_SIZE": "0"}, f"WORLD_SIZE: got '0'; allowed: a number from 1; {LAUNCHER}"),
        ({"LOCAL_RANK": "0.0"}, f"LOCAL_RANK: got '0.0'; allowed: a number from 0; {LAUNCHER}"),
        ({"LOCAL_WORLD_SIZE": "two"}, f"LOCAL_WORLD_SIZE: got 'two'; allowed: a number from 1; {LAUNCHER}"),
        (
            {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
            f"LOCAL_RANK: got 1; allowed: a number below LOCAL_WORLD_SIZE, 1; {LAUNCHER}",
        ),
        ({"MASTER_PORT": "http"}, f"MASTER_PORT: got 'http'; allowed: a number from 1 to 65535; {LAUNCHER}"),
        ({"MASTER_PORT": "0"}, f"MASTER_PORT: got '0'; allowed: a number from 1 to 65535; {LAUNCHER}"),
        ({"MASTER_PORT": "65536"}, f"MASTER_PORT: got '65536'; allowed: a number from 1 to 65535; {LAUNCHER}"),
        ({"RANK": "2"}, f"RANK: got 2; allowed: a number below WORLD_SIZE, 2; {LAUNCHER}"),
        ({"RANK": None}, f"RANK: not set, though RANK or WORLD_SIZE is; {LAUNCHER}"),
        ({"MASTER_ADDR": None}, f"MASTER_ADDR: not set, though RANK or WORLD_SIZE is; {LAUNCHER}"),
        ({"MASTER_PORT": None}, f"MASTER_PORT: not set, though RANK or WORLD_SIZE is; {LAUNCHER}"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_ranks_that_the_environment_does_not_make_sense_of(monkeypatch, changes, expected):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in (PLACE | changes).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        Rank.from_environment()
    assert str(caught.value) == expected


def test_ranks_as_torchrun_sets_them_and_none_at_all(monkeypatch):
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    assert Rank.from_environment() == Rank(0, 1, 0)
    for name, value in (PLACE | {"RANK": "1", "LOCAL_RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    assert Rank.from_environment() == Rank(1, 2, 1)


@pytest.mark.wrong("environment")
@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("RANK", f"a number from 0; {LAUNCHER}"),
        ("WORLD_SIZE", f"a number from 1; {LAUNCHER}"),
        ("LOCAL_RANK", f"a number from 0; {LAUNCHER}"),
        ("LOCAL_WORLD_SIZE", f"a number from 1; {LAUNCHER}"),
        ("TORCHELASTIC_RESTART_COUNT", "a number from 0; unset it"),
        ("SLURM_RESTART_COUNT", "a number from 0; unset it"),
    ],
)
@pytest.mark.parametrize("value", ["first", "-1", "1.5", "٣"])
def test_launchers_variable_that_is_no_number_ends_the_program_with_one_line(
    monkeypatch, tmp_path, capsys, name, allowed, value
):
    """Found at every rank, before the folder is looked at; a rank that cannot tell which it is speaks too."""
    monkeypatch.setenv(name, value)
    argv = ["--config", "configs/digits_vit.yaml", "--device", "cpu", "--run.dir", str(tmp_path)]
    assert train.main(argv) == exit_codes.WRONG_SETTINGS
    assert capsys.readouterr().err == f"error: {name}: got {value!r}; allowed: {allowed}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.wrong("environment")
def test_what_is_wrong_at_one_rank_alone_is_told_by_it(monkeypatch, tmp_path, capsys):
    """Of the others' errors the node's first rank speaks for all."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    argv = ["--config", "configs/digits_vit.yaml", "--device", "cpu", "--run.dir", str(tmp_path)]
    for rank, flags, told in (
        ("2", ["--epochs", "0"], ""),
        ("3", [], f"error: LOCAL_RANK: got 3; allowed: a number below LOCAL_WORLD_SIZE, 3; {LAUNCHER}"),
    ):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert train.main([*argv, *flags]) == exit_codes.WRONG_SETTINGS
        assert capsys.readouterr().err.strip() == told


def test_rank_that_is_no_number_still_gets_the_help(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "zero")
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    assert "--optim.lr" in capsys.readouterr().out


def ascii_start(content: str | bytes) -> str:
    return ascii(content[:20])


@pytest.mark.wrong("run folder")
@pytest.mark.parametrize(
    "content", ["", '{"status": "do', "3", '"done"', "[1]", "\x00\x00", "[" * 200_000], ids=ascii_start
)
def test_status_that_is_damaged_stops_what_might_delete_results(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(
        RunFolderError, match=r"status\.json is damaged .*--run\.overwrite, or choose another --run\.name"
    ):
        RunFolder(tmp_path).status()


@pytest.mark.wrong("run folder")
@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"[1]", "it holds no mapping"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff"),
        (b"[" * 200_000, "it is nested too deeply"),
        (b'{"kind": "st', "Invalid control character"),
        (b"{}", "it lacks kind, step, epoch"),
        (b'{"kind": "step", "step": "2", "epoch": 0}', "step is .2., which is no count"),
        (b'{"kind": "step", "step": 2, "epoch": 0, "class_loss": "low"}', "class_loss is .low., which is no number"),
    ],
    ids=ascii_start,
)
def test_damaged_line_of_the_metrics_is_named_and_nothing_is_overwritten(tmp_path, line, why):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"kind": "step", "step": 1, "epoch": 0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(line + b'\n{"kind": "step", "step": 2, "epoch": 0}\n')
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for read in (lambda: folder.metrics("step"), lambda: folder.rewind_metrics(1, 0)):
        with pytest.raises(
            RunFolderError, match=rf"metrics\.jsonl is damaged \(line 2: {why}.*; delete that line"
        ) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.wrong("run folder")
def test_name_of_a_folder_that_no_file_system_takes(tiny):
    with pytest.raises(RunFolderError, match=r"cannot look into the run folder .*: File name too long; see --run\.dir"):
        claim(replace(tiny.run, dir="a" * 300))


@pytest.mark.wrong("run folder")
def test_links_that_lead_in_circles(tiny, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(RunFolderError, match=r"cannot (look into|write) the run folder .*; see --run\.dir"):
        claim(replace(tiny.run, dir=str(tmp_path / "loop")))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, launched) -> tuple[Config, Path]:
    """A run's checkpoint as it is written at the very start, and the run's settings."""
    from rlpheads.engine.config.data import DataConfig
    from rlpheads.engine.config.learning import HeadsConfig, ModelConfig
    from rlpheads.engine.config.run import RunConfig
    from rlpheads.engine.model.plan import plan_model
    from rlpheads.engine.training.wiring import build_training

    folder = tmp_path_factory.mktemp("runs")
    config = Config(
        batch_size=32,
        device="cpu",
        run=RunConfig(dir=str(folder), name="mine"),
        data=DataConfig(workers=0, image_size=8, crop_scale=(0.8, 1.0)),
        model=ModelConfig("vit_tiny_patch16_224", {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1}),
        heads=HeadsConfig(labels=5),
    )
    training = build_training(
        config, plan_model(config, 10), open_sources(config), RunFolder(folder / "mine"), launched
    )
    training.save()
    training.saver.wait()
    (saved,) = training.run.folder.checkpoints.iterdir()
    return config, saved


def without(key: str):
    """Leave out a key, as if a version that knew no hash of the manifest had written it."""

    def remove(manifest: Path) -> None:
        content = json.loads(manifest.read_text())
        for each in (key, "format", "sha256"):
            del content[each]
        manifest.write_text(json.dumps(content))

    return remove


def a_folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


MANIFESTS = {
    "empty": (lambda file: file.write_bytes(b""), r"manifest\.json is damaged \(Expecting value"),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:99]), r"manifest\.json is damaged \("),
    "zeros": (lambda file: file.write_bytes(bytes(4096)), r"manifest\.json is damaged \(Expecting value"),
    "no text": (lambda file: file.write_bytes(b"\xff\xfe{}"), r"manifest\.json is damaged \('utf-8' codec"),
    "brackets": (lambda file: file.write_text("[" * 200_000), r"manifest\.json is damaged \(it is nested too deeply\)"),
    "a list": (lambda file: file.write_text("[]"), r"manifest\.json is damaged \(it holds no mapping\)"),
    "a folder": (a_folder_instead, r"manifest\.json is damaged \(.*Is a directory"),
    **{
        key: (without(key), rf"manifest\.json is damaged.*\(it lacks {key}\)")
        for key in ("step", "files", "config", "position")
    },
    **{
        key: (without(key), rf"manifest\.json is damaged.*\(it lacks {key}\)")
        for key in ("fingerprint", "regularizer_factor")
    },
}


@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize("case", MANIFESTS)
def test_manifest_that_cannot_be_gone_on_from(checkpoint, tmp_path, case):
    config, saved = checkpoint
    damage, message = MANIFESTS[case]
    run = RunFolder(tmp_path)
    shutil.copytree(saved, run.checkpoints / saved.name)
    damage(run.checkpoints / saved.name / "manifest.json")
    with pytest.raises(CheckpointError, match=message):
        list_checkpoints(run)  # what rlpheads audit looks through
    with pytest.raises(
        CheckpointError, match=f"{message}.*begin again with --run.overwrite or|{message}.*--run.overwrite"
    ):
        find_resume_point(config, run.checkpoints, open_sources(config))


@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_folder_in_the_place_of_a_checkpoints_file(checkpoint, tmp_path, name):
    shutil.copytree(checkpoint[1], tmp_path / "step=000000000")
    a_folder_instead(tmp_path / "step=000000000" / name)
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        verify(tmp_path / "step=000000000", read_manifest(tmp_path / "step=000000000")["files"])


@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"seed is 1 now and was 0"),
        ({"batch_size": 64}, r"batch_size is 64 now and was 32"),
        ({"precision": "bf16"}, r"precision is 'bf16' now and was 'fp32'"),
    ],
    ids=str,
)
def test_checkpoint_of_other_settings(checkpoint, changes, message):
    config, saved = checkpoint
    with pytest.raises(CheckpointError, match=f"was begun with other settings: .*{message}.*another --run.name"):
        find_resume_point(replace(config, **changes), saved.parent, open_sources(config))


@pytest.mark.wrong("checkpoint")
def test_checkpoint_of_other_images_shows_both_fingerprints(checkpoint):
    config, saved = checkpoint
    fewer = replace(config, data=replace(config.data, val_fraction=0.5))
    expected = (
        r"the train images are not those of the checkpoint: their fingerprint is (\w+), the checkpoint's is (?!\1)\w+"
    )
    with pytest.raises(CheckpointError, match=expected):
        find_resume_point(fewer, saved.parent, open_sources(fewer))


@pytest.mark.wrong("checkpoint")
def test_checkpoint_that_must_be_there_and_is_not(checkpoint, tmp_path):
    config, _ = checkpoint
    wanted = replace(config, run=replace(config.run, resume="must"))
    with pytest.raises(
        CheckpointError, match=r"holds no whole checkpoint; start from the beginning with --run\.resume auto"
    ):
        find_resume_point(wanted, tmp_path, open_sources(config))


def test_other_records_are_free_to_change(checkpoint):
    config, saved = checkpoint
    changed = replace(config, log=replace(config.log, tensorboard=False, wandb="offline"))
    assert find_resume_point(changed, saved.parent, open_sources(config)) is not None
