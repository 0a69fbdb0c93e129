"""Train a classifier with random-label prediction heads.

rlpheads train --config configs/digits_vit.yaml --epochs 5
torchrun --nproc-per-node 8 engine/train.py --config configs/imagenet_vit_b.yaml --data.root /data/imagenet
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from rlpheads.engine import exit_codes
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import ConfigError, RankError
from rlpheads.engine.config.launcher_variables import is_first, without_local_rank
from rlpheads.engine.config.ranges import range_errors
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed import host_memory, launcher_folder, parent_death
from rlpheads.engine.model import timm_loading
from rlpheads.engine.terminal import standard_streams
from rlpheads.engine.terminal.text import printable

_FIRST_SPEAKS_S = 10.0
"""Seconds that a rank waits which leaves a refusal to its node's first one: a launcher ends all as soon as one ends."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, launch and fit; return the exit code.

    Everything that can be wrong with the settings, the folder or the images is found before a process group is made.
    """
    if argv is not None:
        return _train(argv)
    parent_death.stop_with_launcher()
    standard_streams.keep_running()  # a process of its own
    host_memory.keep_freed_memory()
    if (left := launcher_folder.read_code()) is not None:
        return left
    code = _train(sys.argv[1:], is_launched=True)
    if code == exit_codes.WRONG_SETTINGS:
        launcher_folder.leave_refusal(code)
    elif code == exit_codes.REQUEUE and launcher_folder.leave_stop(code):
        return exit_codes.DONE  # any other would have a launcher start this rank again
    return code


def _train(argv: Sequence[str], *, is_launched: bool = False) -> int:
    try:
        config = read_settings(without_local_rank(argv), _note)
        with timm_loading.without_wandb():  # torch and timm load here: --help and slips are answered at once
            from rlpheads.engine.training import job

        return job.run(config)
    except ConfigError as error:
        if is_first("LOCAL_RANK") or isinstance(error, RankError):  # of others, the node's first rank speaks
            exit_codes.report_error(error)
        elif is_launched:
            time.sleep(_FIRST_SPEAKS_S)
        return exit_codes.WRONG_SETTINGS
    except KeyboardInterrupt:  # before the first step, or a second one; the first one saves
        if is_first("RANK"):
            print(
                "stopped: interrupted; the same command goes on from the last checkpoint, if there is one",
                file=sys.stderr,
            )
        return exit_codes.INTERRUPTED


def read_settings(argv: Sequence[str], note: Callable[[str], None]) -> Config:
    """Return the settings of a command line, each number in its range; torch is not imported.

    Raises:
        ConfigError: as `parse_config`, and for a number out of its range.
    """
    config = parse_config(argv, note)
    for error in range_errors(config):
        raise error
    return config


def _note(line: str) -> None:
    if is_first("RANK"):
        print(printable(line))


if __name__ == "__main__":
    sys.exit(main())
