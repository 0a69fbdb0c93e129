"""Where a run goes on, past checkpoints that are damaged; and with which settings it may."""

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from small_runs import small_config

from rlpheads.engine.config.data import DataConfig
from rlpheads.engine.config.learning import RegularizerConfig, ScheduleConfig
from rlpheads.engine.config.run import CheckpointConfig, RuntimeConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.model.plan import plan_model
from rlpheads.engine.runs.checkpoint import CheckpointError, write_sealed_manifest
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.resume import check_images, check_settings, find_resume_point, identity
from rlpheads.engine.runs.run_manifest import Position, RunManifest, read_run_manifest
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training.wiring import build_training

RUN = Path("run")


def test_a_resumed_run_may_recompute_activations_but_not_round_differently():
    saved = asdict(Config())
    check_settings(RUN, asdict(Config(runtime=RuntimeConfig(activation_checkpointing=True))), saved)
    with pytest.raises(CheckpointError, match=r"runtime\.tf32 is True now and was False"):
        check_settings(RUN, asdict(Config(runtime=RuntimeConfig(tf32=True))), saved)


def test_a_setting_that_a_run_was_begun_without_was_at_its_default():
    saved = asdict(Config())
    del saved["runtime"], saved["heads"]["dropout"], saved["data"]["augment"]
    check_settings(RUN, asdict(Config()), saved)
    dropping = replace(Config(), heads=replace(Config().heads, dropout=0.1))
    with pytest.raises(CheckpointError, match=r"other settings: heads\.dropout is 0\.1 now and was 0\.0\. "):
        check_settings(RUN, asdict(dropping), saved)


def test_a_setting_that_is_gone_since_is_named():
    saved = {**asdict(Config()), "momentum": 0.9}
    with pytest.raises(CheckpointError, match=r"momentum is None now and was 0\.9"):
        check_settings(RUN, asdict(Config()), saved)


def test_arguments_of_the_model_have_no_default():
    narrow = replace(Config(), model=replace(Config().model, args={"embed_dim": 96}))
    with pytest.raises(CheckpointError, match=r"model\.args\.embed_dim is 96 now and was None"):
        check_settings(RUN, asdict(narrow), asdict(Config()))


def test_what_is_evaluated_is_free_unless_it_steers_the_regulariser():
    saved = asdict(Config())
    rarely = replace(Config(), eval=replace(Config().eval, every=7))
    check_settings(RUN, asdict(rarely), saved)
    steered = replace(rarely, regularizer=replace(rarely.regularizer, factor=1.0, target=0.02))
    saved["regularizer"] |= {"factor": 1.0, "target": 0.02}
    with pytest.raises(CheckpointError, match=r"eval\.every is 7 now and was 1"):
        check_settings(RUN, asdict(steered), saved)


def test_epochs_may_be_raised_where_those_before_stay_what_they_are():
    saved = asdict(Config(schedule=ScheduleConfig(name="step")))
    more = Config(epochs=91, schedule=ScheduleConfig(name="step"))
    check_settings(RUN, asdict(more), saved)
    with pytest.raises(CheckpointError, match=r"epochs is 91 now and was 90\. The epochs of a run can be raised where"):
        check_settings(RUN, asdict(Config(epochs=91)), asdict(Config()))
    with pytest.raises(CheckpointError, match=r"epochs is 89 now and was 90\. Give"):
        check_settings(RUN, asdict(replace(more, epochs=89)), saved)
    steering = RegularizerConfig(factor=1.0, target=0.0)
    rarely = replace(more, regularizer=steering, eval=replace(more.eval, clean_every=2))
    with pytest.raises(CheckpointError, match=r"eval\.clean_every 1"):
        check_settings(RUN, asdict(rarely), asdict(replace(rarely, epochs=90)))


STEPS = (0, 10, 20)


@pytest.fixture(scope="module")
def three(launched, tmp_path_factory) -> tuple[Config, Path]:
    """A run with three checkpoints, of which none was trained for."""
    config = small_config(tmp_path_factory.mktemp("three"), "mine", epochs=9)
    config = replace(config, checkpoint=CheckpointConfig(keep=3))
    sources, folder = open_sources(config), RunFolder(Path(config.run.dir) / "mine")
    training = build_training(config, plan_model(config, 10), sources, folder, launched)
    for step in STEPS:
        training.move_to(Position(*[step // 5, step % 5 * config.batch_size]))
        training.save()
        training.saver.wait()
    return config, folder.checkpoints


@pytest.fixture
def copied(three, tmp_path) -> tuple[Config, list[Path]]:
    config, saved = three
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(saved, checkpoints)
    return config, [checkpoints / f"step={step:09d}" for step in STEPS]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def altered(key: str, value: object) -> Callable[[Path], None]:
    """A manifest of the first format, without a hash, with one entry changed."""

    def alter(path: Path) -> None:
        manifest = json.loads(path.read_text())
        kept = {name: content for name, content in manifest.items() if name not in ("format", "sha256")}
        path.write_text(json.dumps(kept | {key: value}))

    return alter


DAMAGES = {
    "flipped bit": ("__0_0.distcp", flip, r"__0_0\.distcp does not have the hash"),
    "manifest gone": ("manifest.json", Path.unlink, r"manifest\.json is damaged \(.*No such file"),
    "metadata gone": (".metadata", Path.unlink, r"\.metadata is missing"),
    "manifest cut short": ("manifest.json", lambda path: path.write_text(path.read_text()[:99]), "is damaged"),
    "manifest altered": ("manifest.json", lambda path: path.write_text(path.read_text().replace("32", "64")), "hash"),
    "no step there": ("manifest.json", altered("position", {"epoch": 4, "consumed": 33}), "no step begins after 33"),
    "another step": ("manifest.json", altered("position", {"epoch": 4, "consumed": 32}), "of step 20, but epoch 4 and"),
    "another name": ("manifest.json", altered("step", 21), "of step 21, but epoch 4 and 0 samples of it are step 20"),
}


@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(copied, case):
    config, (_, before, newest) = copied
    name, damage, message = DAMAGES[case]
    damage(newest / name)
    stopping = replace(config, checkpoint=replace(config.checkpoint, on_damage="stop"))
    with pytest.raises(CheckpointError, match=f"{message}.*move that folder away to resume from {before.name}"):
        find_resume_point(stopping, newest.parent, open_sources(config))
    point = find_resume_point(config, newest.parent, open_sources(config))
    assert point is not None
    assert (point.checkpoint, point.position) == (before, Position(2, 0))
    (warning,) = point.warnings
    assert re.search(message, warning)
    assert warning.endswith(f"set aside as damaged.{newest.name}, and the run goes on from {before.name}")
    assert sorted(path.name for path in newest.parent.iterdir()) == [
        f"damaged.{newest.name}",
        "step=000000000",
        before.name,
    ]
    assert find_resume_point(config, newest.parent, open_sources(config)) == replace(point, warnings=())


@pytest.mark.wrong("checkpoint")
def test_where_all_are_damaged_none_is_moved(copied):
    config, paths = copied
    for path in paths:
        flip(path / "__0_0.distcp")
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"step=000000020 .*step=000000000 .*no whole checkpoint: begin again"
        ):
            find_resume_point(config, paths[0].parent, open_sources(config))
    assert all(path.is_dir() for path in paths)


@pytest.mark.wrong("checkpoint")
def test_order_of_another_version_is_refused_and_one_that_does_not_say_is_the_first(copied):
    config, (*_, newest) = copied
    altered("order_version", 2)(newest / "manifest.json")
    with pytest.raises(CheckpointError, match=r"version 2 of the samples' order, and here it is version 1"):
        find_resume_point(config, newest.parent, open_sources(config))
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["order_version"]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    point = find_resume_point(config, newest.parent, open_sources(config))
    assert point is not None
    assert point.checkpoint == newest


def noise_tree(root: Path) -> None:
    """240 uncompressed images of 8 x 8 pixels, all as large as each other."""
    for split in ("train", "val"):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for number in range(60):
                pixels = random.Random(f"{split}{label}{number}").randbytes(192)
                (root / split / label / f"{number:03d}.ppm").write_bytes(b"P6 8 8 255\n" + pixels)


@pytest.mark.wrong("tree")
@pytest.mark.parametrize("split", ["train", "val"])
def test_images_replaced_by_others_as_large_are_refused_and_named(tmp_path, split):
    noise_tree(tmp_path)
    config = replace(Config(), batch_size=8, data=DataConfig(dataset="imagefolder", root=str(tmp_path), image_size=8))
    told = identity(config, open_sources(config))
    manifest = RunManifest(
        0, {}, told["fingerprint"], told["heldout_fingerprint"], {}, Position(), 0.0, contents=told["contents"]
    )
    check_images(open_sources(config), manifest)
    for path in sorted((tmp_path / split).glob("*/*"))[:58]:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(
        CheckpointError, match=f"the {split} images are not those .* of 120 files .* 5[78] have other contents"
    ):
        check_images(open_sources(config), manifest)
    check_images(open_sources(config), replace(manifest, contents={}))


@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize(
    "contents", [3, {"train": [1]}, {"train": {"0": 1}}, {"train": {"-1": "ab"}}, {"train": {"x": "ab"}}]
)
def test_hashes_of_files_that_are_none_are_damage(tmp_path, contents):
    facts = {"step": 0, "files": {}, "fingerprint": "f", "heldout_fingerprint": "f", "config": {}}
    facts |= {"position": {"epoch": 0, "consumed": 0}, "regularizer_factor": 0.0, "contents": contents}
    write_sealed_manifest(tmp_path, facts)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        read_run_manifest(tmp_path)
