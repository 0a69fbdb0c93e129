"""Train a classifier with random-label prediction heads.

torchrun engine/train.py --config configs/digits_vit.yaml --epochs 5
torchrun --nproc-per-node 8 engine/train.py --config configs/imagenet_vit_b.yaml --data.root /data/imagenet
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rlpheads.engine.command_line import parse_config
from rlpheads.engine.config_errors import ConfigError

EXIT_CONFIG_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, launch and fit; return the exit code.

    Everything that can be wrong with the settings, the folder or the images is found before a process group is made.
    """
    try:
        config = parse_config(sys.argv[1:] if argv is None else argv, note=_note)
        from rlpheads.engine import job  # torch and timm load here: --help and typing errors answer at once

        return job.run(config)
    except ConfigError as error:
        if _speaks(os.environ.get("LOCAL_RANK", "0")):
            print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIG_ERROR


def _speaks(local_rank: str) -> bool:
    """Whether this rank tells the node's errors: the first does, the others found the same."""
    return not local_rank.isdigit() or int(local_rank) == 0


def _note(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line)


if __name__ == "__main__":
    sys.exit(main())
