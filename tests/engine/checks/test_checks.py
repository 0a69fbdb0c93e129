"""A start stops at the first error, the cheap checks before the dear ones; every error can be found at once, too."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checked_flags import accept, complaint
from wrong_settings import CONFIGS, CONTRADICTIONS, DIGITS, NUMBERS

from rlpheads.engine.checks.checks import check_config, find_errors
from rlpheads.engine.config.command_line import parse_config


@pytest.mark.wrong("config")
@pytest.mark.parametrize(("flags", "expected"), [*NUMBERS, *CONTRADICTIONS])
def test_refused_before_anything_is_imported(flags: list[str], expected: str) -> None:
    assert complaint(*flags) == expected


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize("file", sorted(CONFIGS.iterdir()), ids=lambda file: file.name)
def test_shipped_file_is_sound_once_it_has_images(file: Path, tmp_path: Path) -> None:
    config = parse_config(["--config", str(file), "--device", "cpu"])
    if config.data.dataset in ("imagefolder", "cifar10", "cifar100"):
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(tmp_path)))
        for label in "ab":
            (tmp_path / label).mkdir()
    for world_size in (1, 2, 8):
        check_config(config, world_size)


def test_checking_draws_no_random_number() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    accept()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_auto_needs_no_cuda() -> None:
    accept("--device", "auto")


def test_slips_in_numbers_are_told_before_torch_and_timm_are_imported() -> None:
    code = (
        "import sys\n"
        "from rlpheads.engine.config.command_line import parse_config\n"
        "from rlpheads.engine.checks.checks import check_config\n"
        f"try: check_config(parse_config([*{DIGITS!r}, '--optim.lr', '0']), 1)\n"
        "except ValueError as error: print(error, {'torch', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "optim.lr: got 0.0; allowed: a number above 0 set()\n"


def found(*flags: str) -> dict[str, list[str] | None]:
    errors = find_errors(parse_config([*DIGITS, *flags]), world_size=1)
    return {name: None if group is None else [str(error) for error in group] for name, group in errors.items()}


def test_sound_settings_have_no_errors_in_any_group() -> None:
    groups = ("ranges", "settings", "plugins", "workers", "device", "log", "model", "optimizers")
    assert found() == {name: [] for name in groups}


def test_all_errors_are_found_group_by_group() -> None:
    """Two contradictions and what is wrong with the log; the model would be built from settings that do not hold."""
    errors = found("--regularizer.factor", "1", "--heads.taps", "none", "--heads.labels", "auto", "--data.download")
    assert errors["ranges"] == []
    assert errors["settings"] is not None
    assert [error.partition(":")[0] for error in errors["settings"]] == [
        "data.download",
        "regularizer.factor",
        "heads.labels",
    ]
    assert (errors["device"], errors["model"], errors["optimizers"]) == ([], None, None)


def test_every_number_out_of_range_is_found_and_what_needs_them_is_left_out() -> None:
    """accumulate 0 would divide the batch by nothing."""
    errors = found("--accumulate", "0", "--optim.lr", "0", "--model.name", "no_such_model")
    assert errors["ranges"] == [
        "accumulate: got 0; allowed: a number at least 1",
        "optim.lr: got 0.0; allowed: a number above 0",
    ]
    assert errors["settings"] is errors["model"] is None


@pytest.mark.long
@pytest.mark.parametrize("name", ["imagenet_resnet50", "imagenet_vit_s", "imagenet_vit_b"])
def test_shipped_imagenet_settings_can_be_run_on_eight_ranks(name: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / "0.jpg").touch()
    config = parse_config(["--config", str(CONFIGS / f"{name}.yaml"), "--data.root", str(tmp_path), "--device", "cpu"])
    assert not [error for group in find_errors(config, 8).values() for error in group or ()]


def test_a_wrong_model_and_wrong_optimizers_are_found_together() -> None:
    errors = found("--model.name", "vit_tiny_patch16_2244", "--optim.name", "adamv", "--heads.optim.name", "sgdd")
    (model,) = errors["model"] or []
    assert "(nearest: vit_tiny_patch16_224)" in model
    assert [error.partition(":")[0] for error in errors["optimizers"] or []] == ["optim.name", "heads.optim.name"]


def test_a_tree_without_class_folders_is_refused_before_the_model_is_built(tmp_path: Path) -> None:
    refused = complaint("--data.dataset", "imagefolder", "--data.root", str(tmp_path))
    assert refused == f"{tmp_path} must hold one folder for each class: it has none"
