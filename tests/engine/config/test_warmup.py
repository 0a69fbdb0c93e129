"""A warm-up that is longer than the run, or than its first cycle, is cut, so that `--epochs 1` alone is a short run."""

from __future__ import annotations

import pytest
from wrong_settings import CONFIGS

from rlpheads.engine.config.command_line import parse_config


@pytest.mark.parametrize(
    ("argv", "warmup", "said"),
    [
        ([], 8.0, ""),
        (["--epochs", "8"], 8.0, ""),
        (["--epochs", "1"], 1.0, "schedule.warmup_epochs: 8 cut to 1, the epochs of the run"),
        (["--epochs", "1", "--schedule.name", "constant"], 1.0, "warmup_epochs: 8 cut to 1, the epochs of the run"),
        (["--schedule.cycles", "12", "--schedule.cooldown_epochs", "6"], 7.0, "8 cut to 7, the epochs of one cycle"),
    ],
)
def test_warmup_ends_with_the_run_or_its_first_cycle(argv: list[str], warmup: float, said: str) -> None:
    lines: list[str] = []
    config = parse_config(["--config", str(CONFIGS / "imagenet_vit_b.yaml"), *argv], note=lines.append)
    assert config.schedule.warmup_epochs == warmup
    assert [said in line for line in lines] == ([True] if said else [])


@pytest.mark.wrong("config")
def test_cooldown_that_leaves_no_epoch_is_not_mended() -> None:
    argv = ["--config", str(CONFIGS / "imagenet_vit_b.yaml"), "--epochs", "2", "--schedule.cooldown_epochs", "2"]
    assert parse_config(argv).schedule.warmup_epochs == 8
