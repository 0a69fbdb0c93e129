"""What is refused before anything starts: ranges, contradictions, names and devices, each with its message."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from wrong_settings import CONFIGS, CONTRADICTIONS, DIGITS, NAMES, NUMBERS

from rlpheads.engine.checks.settings import RANGES, Interval, check_config, check_log
from rlpheads.engine.config.command_line import ConfigError, parse_config
from rlpheads.engine.config.run import LogConfig
from rlpheads.engine.config.schema import Config


def complaint(*flags: str, world_size: int = 1) -> str:
    config = parse_config([*DIGITS, *flags])
    with pytest.raises(ConfigError) as caught:
        check_config(config, world_size)
    return str(caught.value)


def accept(*flags: str, world_size: int = 1) -> None:
    check_config(parse_config([*DIGITS, *flags]), world_size)


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_auto_needs_no_cuda() -> None:
    accept("--device", "auto")


def test_slips_in_numbers_are_told_before_torch_and_timm_are_imported() -> None:
    code = (
        "import sys\n"
        "from rlpheads.engine.config.command_line import parse_config\n"
        "from rlpheads.engine.checks.settings import check_config\n"
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
        elif parts_of(hint) & {int, float}:
            keys.add(prefix + name)
    return keys


def parts_of(hint: Any) -> set[Any]:
    """The types that a hint is made of, those inside an optional tuple among them."""
    tuples = [part for part in get_args(hint) if get_origin(part) is tuple]
    return {hint, *get_args(hint)}.union(*map(get_args, tuples))


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


def test_wandb_that_is_not_installed_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's own folder of runs in the current folder looks like a package of that name."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    expected = (
        r"log\.wandb: got 'offline', which needs the package wandb.*allowed here: off.*pip install 'rlpheads\[wandb\]'"
    )
    with pytest.raises(ConfigError, match=expected):
        check_log(LogConfig(wandb="offline"))
    check_log(LogConfig())
