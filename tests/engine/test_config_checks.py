"""What is refused before anything starts: ranges, contradictions, names and devices, each with its message."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.engine.command_line import ConfigError, parse_config
from rlpheads.engine.config import Config
from rlpheads.engine.config_checks import RANGES, Interval, check_config

CONFIGS = Path(__file__).parents[2] / "configs"
DIGITS = ["--config", str(CONFIGS / "digits_vit.yaml"), "--device", "cpu"]


def complaint(*flags: str, world_size: int = 1) -> str:
    config = parse_config([*DIGITS, *flags])
    with pytest.raises(ConfigError) as caught:
        check_config(config, world_size)
    return str(caught.value)


def accept(*flags: str, world_size: int = 1) -> None:
    check_config(parse_config([*DIGITS, *flags]), world_size)


NUMBERS = [
    (["--seed", "-1"], "seed: got -1; allowed: a number at least 0 and at most 9.22337e+18"),
    (["--epochs", "0"], "epochs: got 0; allowed: a number at least 1"),
    (["--max_steps", "0"], "max_steps: got 0; allowed: a number at least 1"),
    (["--batch_size", "1"], "batch_size: got 1; allowed: a number at least 2"),
    (["--accumulate", "0"], "accumulate: got 0; allowed: a number at least 1"),
    (["--data.workers", "-1"], "data.workers: got -1; allowed: a number at least 0"),
    (
        ["--data.dali.hardware_share", "2"],
        "data.dali.hardware_share: got 2.0; allowed: a number at least 0 and at most 1",
    ),
    (
        ["--data.dali.largest_image", "[0, 5980]"],
        "data.dali.largest_image: got (0, 5980); allowed: a height and a width, or [0, 0]",
    ),
    (
        ["--data.loader", "dali", "--data.dali.decode", "gpu", "--device", "cpu"],
        "data.dali.decode: got 'gpu'; allowed: auto or cpu where the model is not on a GPU",
    ),
    (["--data.image_size", "0"], "data.image_size: got 0; allowed: a number at least 1"),
    (["--data.val_fraction", "1"], "data.val_fraction: got 1.0; allowed: a number above 0 and below 1"),
    (["--data.val_fraction", "0"], "data.val_fraction: got 0.0; allowed: a number above 0 and below 1"),
    (["--data.hflip", "1.5"], "data.hflip: got 1.5; allowed: a number at least 0 and at most 1"),
    (["--data.crop_scale", "[0, 1]"], "data.crop_scale: got (0.0, 1.0); allowed: numbers above 0 and at most 1"),
    (["--data.crop_scale", "[0.5, 1.1]"], "data.crop_scale: got (0.5, 1.1); allowed: numbers above 0 and at most 1"),
    (
        ["--data.crop_scale", "[1, 0.5]"],
        "data.crop_scale: got (1.0, 0.5); allowed: the lesser number first: [0.5, 1.0]",
    ),
    (["--data.crop_ratio", "[0, 1]"], "data.crop_ratio: got (0.0, 1.0); allowed: numbers above 0"),
    (
        ["--data.crop_ratio", "[2, 0.5]"],
        "data.crop_ratio: got (2.0, 0.5); allowed: the lesser number first: [0.5, 2.0]",
    ),
    (["--data.crop_padding", "0"], "data.crop_padding: got 0; allowed: a number at least 1"),
    (["--data.subset.fraction", "0"], "data.subset.fraction: got 0.0; allowed: a number above 0 and at most 1"),
    (["--data.subset.per_class", "0"], "data.subset.per_class: got 0; allowed: a number at least 1"),
    (["--data.synthetic.classes", "1"], "data.synthetic.classes: got 1; allowed: a number at least 2"),
    (
        ["--data.augment.rand_magnitude", "31"],
        "data.augment.rand_magnitude: got 31.0; allowed: a number at least 0 and at most 30",
    ),
    (
        ["--data.augment.color_jitter", "[0.4, 0.4, 0.4, 0.6]"],
        "data.augment.color_jitter: got (0.4, 0.4, 0.4, 0.6); allowed: a hue, the last number, of at most 0.5",
    ),
    (
        ["--data.augment.policy", "three", "--data.image_size", "6"],
        "data.augment.policy: got 'three'; allowed: another policy for images of 6 pixels or less, which it cannot blur",
    ),
    (["--data.mix.mixup", "-1"], "data.mix.mixup: got -1.0; allowed: a number at least 0"),
    (["--data.mix.switch", "2"], "data.mix.switch: got 2.0; allowed: a number at least 0 and at most 1"),
    (["--data.mix.off_epoch", "-1"], "data.mix.off_epoch: got -1; allowed: a number at least 0"),
    (
        ["--model.bce_threshold", "0.2"],
        "model.bce_threshold: got 0.2; allowed: null while model.loss is cross_entropy",
    ),
    (
        ["--model.loss", "bce", "--model.bce_threshold", "0.2", "--model.label_smoothing", "0.1"],
        "model.bce_threshold: got 0.2; allowed: null with model.label_smoothing, whose smoothed targets it would only "
        "make 0 or 1 again",
    ),
    (["--data.augment.cutout", "-1"], "data.augment.cutout: got -1; allowed: a number at least 0"),
    (["--data.augment.erase", "2"], "data.augment.erase: got 2.0; allowed: a number at least 0 and at most 1"),
    (
        ["--data.augment.erase_area", "[0.3, 0.1]"],
        "data.augment.erase_area: got (0.3, 0.1); allowed: the lesser number first: [0.1, 0.3]",
    ),
    (["--data.eval_crop_fraction", "0"], "data.eval_crop_fraction: got 0.0; allowed: a number above 0 and at most 1"),
    (
        ["--data.mean", "[124, 116, 104]"],
        "data.mean: got (124.0, 116.0, 104.0); allowed: numbers at least 0 and at most 1",
    ),
    (["--data.std", "[0, 1, 1]"], "data.std: got (0.0, 1.0, 1.0); allowed: numbers above 0 and at most 1"),
    (["--model.label_smoothing", "1"], "model.label_smoothing: got 1.0; allowed: a number at least 0 and below 1"),
    (
        ["--model.ema.every", "4"],
        "model.ema.every: got 4; allowed: 1 while model.ema_decay is null: there is no average",
    ),
    (["--loss_scale.initial", "0"], "loss_scale.initial: got 0.0; allowed: a number above 0"),
    (
        ["--early_stopping.metric", "eval_ema_loss"],
        "early_stopping.metric: got 'eval_ema_loss'; allowed: eval_top1 or eval_loss while model.ema_decay is null: there is "
        "no average",
    ),
    (["--early_stopping.patience", "0"], "early_stopping.patience: got 0; allowed: a number at least 1"),
    (["--runtime.profile.first", "-1"], "runtime.profile.first: got -1; allowed: a number at least 0"),
    (["--model.ema_decay", "1"], "model.ema_decay: got 1.0; allowed: a number above 0 and below 1"),
    (["--optim.lr", "0"], "optim.lr: got 0.0; allowed: a number above 0"),
    (["--optim.momentum", "1"], "optim.momentum: got 1.0; allowed: a number at least 0 and below 1"),
    (["--optim.weight_decay", "-0.1"], "optim.weight_decay: got -0.1; allowed: a number at least 0"),
    (["--optim.clip_norm", "0"], "optim.clip_norm: got 0.0; allowed: a number above 0"),
    (["--heads.optim.lr", "-1"], "heads.optim.lr: got -1.0; allowed: a number above 0"),
    (["--heads.labels", "1"], "heads.labels: got 1; allowed: a number at least 2 and at most 2.14748e+09"),
    (["--heads.draws", "0"], "heads.draws: got 0; allowed: a number at least 1"),
    (["--heads.hidden", "0"], "heads.hidden: got 0; allowed: a number at least 1"),
    (["--heads.dropout", "1"], "heads.dropout: got 1.0; allowed: a number at least 0 and below 1"),
    (["--heads.joint", "-1"], "heads.joint: got -1.0; allowed: a number at least 0"),
    (["--regularizer.factor", "-1"], "regularizer.factor: got -1.0; allowed: a number at least 0"),
    (["--schedule.warmup_epochs", "41"], "schedule.warmup_epochs: got 41.0; allowed: at most the epochs, 40"),
    (
        ["--schedule.min_lr_fraction", "2"],
        "schedule.min_lr_fraction: got 2.0; allowed: a number at least 0 and at most 1",
    ),
    (["--eval.batch_size", "0"], "eval.batch_size: got 0; allowed: a number at least 1"),
    (["--checkpoint.keep", "0"], "checkpoint.keep: got 0; allowed: a number at least 1"),
]

ONE_CYCLE = ["--schedule.cycles", "4", "--schedule.cooldown_epochs", "8"]
NUMBERS += [
    (["--optim.base_batch_size", "0"], "optim.base_batch_size: got 0; allowed: a number at least 1"),
    (["--optim.layer_decay", "0"], "optim.layer_decay: got 0.0; allowed: a number above 0 and at most 1"),
    (["--optim.clip_value", "0"], "optim.clip_value: got 0.0; allowed: a number above 0"),
    (["--heads.optim.clip_agc", "-1"], "heads.optim.clip_agc: got -1.0; allowed: a number above 0"),
    (["--schedule.cycles", "0"], "schedule.cycles: got 0; allowed: a number at least 1"),
    (["--schedule.cycle_decay", "0"], "schedule.cycle_decay: got 0.0; allowed: a number above 0 and at most 1"),
    (["--schedule.decay_every", "0"], "schedule.decay_every: got 0.0; allowed: a number above 0"),
    (["--schedule.decay_rate", "2"], "schedule.decay_rate: got 2.0; allowed: a number above 0 and at most 1"),
    (["--schedule.cooldown_epochs", "40"], "schedule.cooldown_epochs: got 40.0; allowed: less than the epochs, 40"),
    (
        [*ONE_CYCLE, "--schedule.warmup_epochs", "9"],
        "schedule.warmup_epochs: got 9.0; allowed: at most one cycle, 8 epochs",
    ),
    (
        ["--schedule.name", "multistep"],
        "schedule.milestones: got []; allowed: the epochs of the falls with multistep, and [] without it",
    ),
    (
        ["--schedule.milestones", "[3]"],
        "schedule.milestones: got [3.0]; allowed: the epochs of the falls with multistep, and [] without it",
    ),
    (
        ["--schedule.name", "multistep", "--schedule.milestones", "[5, 3]"],
        "schedule.milestones: got [5.0, 3.0]; allowed: numbers that ascend",
    ),
    (["--schedule.name", "step", "--schedule.cycles", "2"], "schedule.cycles: got 2; allowed: 1 with step"),
    (
        ["--schedule.name", "constant", "--schedule.cooldown_epochs", "1"],
        "schedule.cooldown_epochs: got 1.0; allowed: 0 with constant",
    ),
    (
        ["--optim.clip_norm", "1", "--optim.clip_agc", "0.01"],
        "optim: got clip_norm and clip_agc; allowed: one way of clipping",
    ),
    (["--heads.optim.layer_decay", "0.9"], "heads.optim.layer_decay: got 0.9; allowed: null: heads have no layers"),
]

NO_SLASH = "the name of one folder, without / or \\ (run.dir says where it lies)"
NO_HEADS = "0 without heads (heads.taps is none); heads at all blocks: heads.taps all"
CONTRADICTIONS = [
    (["--run.name", "a/b"], f"run.name: got 'a/b'; allowed: {NO_SLASH}"),
    (["--run.name", ".."], f"run.name: got '..'; allowed: {NO_SLASH}"),
    (["--run.name", "a\nb"], f"run.name: got 'a\\nb'; allowed: {NO_SLASH}"),
    (["--run.name", "é" * 101], f"run.name: got '{'é' * 101}'; allowed: at most 200 bytes"),
    (["--run.dir="], "run.dir: got ''; allowed: the name of a folder; . is the current one"),
    (
        ["--run.resume", "must", "--run.overwrite"],
        "run.resume: got must, but run.overwrite deletes what would be resumed; allowed: one of the two",
    ),
    (["--data.root", "images"], "data.root: got 'images'; allowed: null for digits, which come with scikit-learn"),
    (
        ["--data.dataset", "patches", "--data.root", "images"],
        "data.root: got 'images'; allowed: null for patches, which come with scikit-image and scikit-learn",
    ),
    (
        ["--data.dataset", "cifar100"],
        "data.root: got null; allowed: the folder of the images, which cifar100 needs: --data.root FOLDER"
        "; with --data.download too it is fetched there",
    ),
    (["--data.download"], "data.download: got true; allowed: false: only cifar10 and cifar100 can be fetched"),
    (
        ["--data.subset.fraction", "0.5", "--data.subset.per_class", "10"],
        "data.subset.fraction: got 0.5; allowed: 1 where data.subset.per_class says how many",
    ),
    (
        ["--data.dataset", "imagefolder"],
        "data.root: got null; allowed: the folder of the images, which imagefolder needs: --data.root FOLDER",
    ),
    (
        ["--regularizer.factor", "1", "--heads.taps", "none"],
        f"regularizer.factor: got 1.0; allowed: {NO_HEADS}",
    ),
    (
        ["--heads.joint", "1", "--heads.taps", "none"],
        f"heads.joint: got 1.0; allowed: {NO_HEADS}",
    ),
    (["--heads.taps", "[]"], "heads.taps: got []; allowed: all or at least one place, or none"),
    (["--regularizer.taps", "[]"], "regularizer.taps: got []; allowed: all or at least one place"),
]

NAMES = [
    (
        ["--model.name", "vit_tinny_patch16_224"],
        "(nearest: vit_tiny_patch16_224); timm.list_models() names them",
    ),
    (["--model.name", "VIT_TINY_PATCH16_224"], "(nearest: vit_tiny_patch16_224); timm.list_models() names them"),
    (
        ["--model.args.num_classes", "3"],
        "model.args: got num_classes, which the dataset decides; allowed: any other argument",
    ),
    (["--model.args.bogus", "1"], "got an unexpected keyword argument 'bogus'"),
    (["--model.args.num_heads", "0"], "which cannot be built: ZeroDivisionError: integer modulo by zero"),
    (
        ["--data.image_size", "32"],
        "does not take images of 32 x 32 pixels: Input height (32) doesn't match model (8).",
    ),
    (["--heads.taps", "[6]"], "the network has 6 blocks, 0 to 5, or -6 to -1 from the end; the nearest is 5"),
    (["--regularizer.taps", "[-7]"], "the network has 6 blocks, 0 to 5, or -6 to -1 from the end; the nearest is -6"),
    (
        ["--heads.taps", "[0, 5]", "--regularizer.taps", "[-2]"],
        "regularizer.taps: got [-2]; allowed: taps that have a head: [0, 5]",
    ),
    (
        ["--optim.name", "adamww"],
        "allowed: an optimizer of timm (nearest: adamw); timm.optim.list_optimizers() names them",
    ),
    (
        ["--heads.optim.name", "sdg"],
        "allowed: an optimizer of timm (nearest: sgd); timm.optim.list_optimizers() names them",
    ),
    (
        ["--optim.name", "adahessian"],
        "optim.name: got 'adahessian'; allowed: an optimizer that needs first-order gradients only, such as adamw",
    ),
]


@pytest.mark.wrong("config")
@pytest.mark.parametrize(("flags", "expected"), [*NUMBERS, *CONTRADICTIONS])
def test_refused_before_anything_is_imported(flags: list[str], expected: str) -> None:
    assert complaint(*flags) == expected


@pytest.mark.wrong("config")
@pytest.mark.parametrize(("flags", "ending"), NAMES)
def test_refused_by_the_model_and_optimizers_themselves(flags: list[str], ending: str) -> None:
    assert complaint(*flags).endswith(ending)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world_size", "expected"),
    [
        (65, 1, 1, "a multiple of 2 = 2 x 1 (ranks) x 1 (accumulate) (nearest: 64 or 66)"),
        (64, 1, 3, "a multiple of 6 = 2 x 3 (ranks) x 1 (accumulate) (nearest: 60 or 66)"),
        (8, 3, 2, "a multiple of 12 = 2 x 2 (ranks) x 3 (accumulate) (nearest: 12)"),
    ],
)
def test_batch_that_does_not_split_evenly(batch_size: int, accumulate: int, world_size: int, expected: str) -> None:
    flags = ["--batch_size", str(batch_size), "--accumulate", str(accumulate)]
    assert complaint(*flags, world_size=world_size) == f"batch_size: got {batch_size}; allowed: {expected}"


@given(batch_size=st.integers(2, 300), accumulate=st.integers(1, 5), world_size=st.integers(1, 6))
def test_an_even_share_for_every_micro_batch_is_what_decides(batch_size: int, accumulate: int, world_size: int) -> None:
    config = dataclasses.replace(parse_config(DIGITS), batch_size=batch_size, accumulate=accumulate)
    config = dataclasses.replace(
        config, run=dataclasses.replace(config.run, name="")
    )  # refused right after the batches
    with pytest.raises(ConfigError) as caught:
        check_config(config, world_size)
    micro_batch, rest = divmod(batch_size, world_size * accumulate)
    is_even = rest == 0 and micro_batch % 2 == 0
    assert str(caught.value).startswith("run.name: empty" if is_even else "batch_size: ")


def test_evaluation_batch_needs_only_equal_shares() -> None:
    accept("--eval.batch_size", "15", "--batch_size", "60", world_size=3)
    expected = "eval.batch_size: got 16; allowed: a multiple of 3, the number of ranks (nearest: 15 or 18)"
    assert complaint("--eval.batch_size", "16", "--batch_size", "60", world_size=3) == expected


@pytest.mark.wrong("config")
def test_batch_norm_is_refused_on_several_ranks() -> None:
    size = ["--model.name", "resnet18", "--data.image_size", "32", "--model.args"]
    config = parse_config([*DIGITS, *size, str(dict.fromkeys(parse_config(DIGITS).model.args)).replace("None", "null")])
    check_config(config, 1)
    with pytest.raises(ConfigError) as caught:
        check_config(config, 2)
    synchronised = dataclasses.replace(config.model, sync_batchnorm=True)
    check_config(dataclasses.replace(config, model=synchronised), 2)
    padded = dataclasses.replace(config, data=dataclasses.replace(config.data, partial="pad"))
    with pytest.raises(ConfigError, match=r"data\.partial: got 'pad'; allowed: drop for a network with batch norm"):
        check_config(padded, 1)
    assert str(caught.value) == (
        "model.name: got 'resnet18', whose batch norm keeps statistics of one rank's images; "
        "allowed on several ranks: --model.sync_batchnorm, or a model without batch norm"
    )


@pytest.mark.wrong("config")
def test_run_needs_a_name() -> None:
    unnamed = dataclasses.replace(parse_config(DIGITS), run=dataclasses.replace(parse_config(DIGITS).run, name=""))
    with pytest.raises(ConfigError, match=r"^run\.name: empty, and no --config file to take it from"):
        check_config(unnamed, 1)


@pytest.mark.wrong("config")
def test_images_must_be_in_a_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "file").touch()
    flags = ["--data.dataset", "imagefolder", "--data.root"]
    accept(*flags, str(tmp_path / "imagenet"))
    wrong = tmp_path / "imagnet"
    assert complaint(*flags, str(wrong)) == (
        f"data.root: got {str(wrong)!r}; allowed: a folder that exists (nearest: {tmp_path / 'imagenet'})"
    )
    assert complaint(*flags, str(tmp_path / "file")).endswith("allowed: a folder that exists")
    assert complaint(*flags, str(tmp_path / "a" / "b")).endswith(f"a folder that exists (nor does {tmp_path / 'a'})")


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--heads.taps", "none"],
        ["--heads.taps", "[0, 5]", "--regularizer.taps", "[-1]", "--regularizer.factor", "1"],
        ["--data.val_fraction", "null"],
        ["--heads.taps", "[0.attn, -1]", "--regularizer.taps", "[0.attn]", "--regularizer.factor", "1"],
        ["--model.frozen"],
        ["--model.args.drop_path_rate", "0.1", "--precision", "bf16"],
        ["--optim.name", "sgd", "--optim.clip_norm", "1", "--schedule.name", "constant"],
        ["--schedule.warmup_epochs", "25"],
    ],
)
def test_sound_configuration_is_accepted(flags: list[str]) -> None:
    accept(*flags)


@pytest.mark.parametrize("file", sorted(CONFIGS.iterdir()), ids=lambda file: file.name)
def test_shipped_file_is_sound_once_it_has_images(file: Path, tmp_path: Path) -> None:
    config = parse_config(["--config", str(file), "--device", "cpu"])
    if config.data.dataset in ("imagefolder", "cifar10", "cifar100"):
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(tmp_path)))
    for world_size in (1, 2, 8):
        check_config(config, world_size)


def test_checking_draws_no_random_number() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    accept()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.wrong("environment")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_names_the_remedy() -> None:
    assert complaint("--device", "cuda") == (
        f"device: got cuda, but PyTorch {torch.__version__} finds no CUDA device; allowed here: cpu or auto. "
        "CUDA needs a GPU, its driver and a CUDA build of PyTorch; `rlpheads env` shows what is found"
    )
    accept("--device", "auto")


def test_slips_in_numbers_are_told_before_torch_and_timm_are_imported() -> None:
    code = (
        "import sys\n"
        "from rlpheads.engine.command_line import parse_config\n"
        "from rlpheads.engine.config_checks import check_config\n"
        f"try: check_config(parse_config([*{DIGITS!r}, '--optim.lr', '0']), 1)\n"
        "except ValueError as error: print(error, {'torch', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "optim.lr: got 0.0; allowed: a number above 0 set()\n"


def numbers_of(cls: type, prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            keys |= numbers_of(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif {hint, *get_args(hint)} & {int, float}:
            keys.add(prefix + name)
    return keys


def test_every_number_has_a_range() -> None:
    """A new number in a dataclass is given a range here, or this fails."""
    assert set(RANGES) == numbers_of(Config)


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "words"),
    [
        (Interval(1), [1, 2.5, 1e300], [0.999, -1], "at least 1"),
        (Interval(0, open_low=True), [5e-324], [0, -1], "above 0"),
        (Interval(0, 1, open_high=True), [0, 0.99], [1, 2, -0.1], "at least 0 and below 1"),
        (Interval(high=2), [-1e300, 2], [2.1], "at most 2"),
    ],
)
def test_interval(interval: Interval, inside: list[Any], outside: list[Any], words: str) -> None:
    assert all(number in interval for number in inside)
    assert not any(number in interval for number in outside)
    assert str(interval) == words


@pytest.mark.wrong("environment")
def test_apex_optimizers_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed; then the registry's unrelated package; then NVIDIA's, without a GPU."""
    wanted = "optim.name: got 'fusedadamw', "
    instead = "allowed here: optim.name without fused (torch's own fused step comes with adamw)"
    flags = ["--optim.name", "fusedadamw"]
    built = f"{wanted}which needs NVIDIA's apex, built from its source; it is not installed; {instead}"
    assert complaint(*flags) == built
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "the apex that is installed is the unrelated package of that name in the registry" in complaint(*flags)
    (tmp_path / "apex" / "optimizers.py").write_text("class FusedAdam: ...")
    importlib.invalidate_caches()
    if not torch.cuda.is_available():
        assert complaint(*flags) == f"{wanted}whose kernels need a CUDA device, and there is none; {instead}"
