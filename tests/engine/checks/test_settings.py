"""Settings that contradict each other are refused with their message."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
from checked_flags import accept, complaint
from hypothesis import given
from hypothesis import strategies as st
from wrong_settings import DIGITS

from rlpheads.engine.checks.checks import check_config
from rlpheads.engine.checks.settings import log_errors
from rlpheads.engine.config.command_line import ConfigError, parse_config
from rlpheads.engine.config.run import LogConfig


@pytest.mark.long
@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world_size", "expected"),
    [
        (65, 1, 1, "a multiple of 2 = 2 x 1 (ranks) x 1 (accumulate) (nearest: 64 or 66)"),
        (
            64,
            1,
            3,
            "a multiple of 6 = 2 x 3 (ranks) x 1 (accumulate) (nearest: 60 or 66); 64 can be shared by 2 or 4 rank(s)",
        ),
        (16, 2, 5, "a multiple of 20 = 2 x 5 (ranks) x 2 (accumulate) (nearest: 20); 16 can be shared by 4 rank(s)"),
        (8, 3, 2, "a multiple of 12 = 2 x 2 (ranks) x 3 (accumulate) (nearest: 12)"),
    ],
)
def test_batch_that_does_not_split_evenly(batch_size: int, accumulate: int, world_size: int, expected: str) -> None:
    flags = ["--batch_size", str(batch_size), "--accumulate", str(accumulate)]
    assert complaint(*flags, world_size=world_size) == f"batch_size: got {batch_size}; allowed: {expected}"


@pytest.mark.long
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


@pytest.mark.long
def test_evaluation_batch_needs_only_equal_shares() -> None:
    accept("--eval.batch_size", "15", "--batch_size", "60", world_size=3)
    expected = "eval.batch_size: got 16; allowed: a multiple of 3, the number of ranks (nearest: 15 or 18)"
    assert complaint("--eval.batch_size", "16", "--batch_size", "60", world_size=3) == expected


@pytest.mark.wrong("config")
def test_run_needs_a_name() -> None:
    unnamed = dataclasses.replace(parse_config(DIGITS), run=dataclasses.replace(parse_config(DIGITS).run, name=""))
    with pytest.raises(ConfigError, match=r"^run\.name: empty, and no --config file to take it from"):
        check_config(unnamed, 1)


@pytest.mark.long
@pytest.mark.wrong("config")
def test_images_must_be_in_a_folder_that_exists(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "imagenet" / label).mkdir(parents=True)
    (tmp_path / "file").touch()
    flags = ["--data.dataset", "imagefolder", "--data.root"]
    accept(*flags, str(tmp_path / "imagenet"))
    wrong = tmp_path / "imagnet"
    assert complaint(*flags, str(wrong)) == (
        f"data.root: got {str(wrong)!r}; allowed: a folder that exists (nearest: {tmp_path / 'imagenet'})"
    )
    assert complaint(*flags, str(tmp_path / "file")).endswith("allowed: a folder that exists")
    assert complaint(*flags, str(tmp_path / "a" / "b")).endswith(f"a folder that exists (nor does {tmp_path / 'a'})")


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
    (error,) = log_errors(LogConfig(wandb="offline"))
    assert re.search(expected, str(error))
    (error,) = log_errors(LogConfig(trackio=True))
    assert re.search(r"log\.trackio: got true.*allowed here: false.*pip install 'rlpheads\[trackio\]'", str(error))
    assert not list(log_errors(LogConfig()))
