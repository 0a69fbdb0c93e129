"""Train, and write down in which order one step entered which source files. `trace_step.py` runs this in a tree of its choice.

python scripts/step_profile.py OUT.json --config configs/digits_vit.yaml ...

A step lies between two questions to the stop flag (`StopFlag.agreed`), which the loop asks once at each step's end. The
third one is traced: by then everything is imported and built.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FrameType

STEP_END = "agreed"
STEP = 3


class StepProfile:
    """A profile function that notes the files whose code runs during one step, in the order met."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self._num_ended = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Take one event of the interpreter; calls of the step's end close a step."""
        if event == "call" and self._num_ended == STEP - 1:
            self.files.setdefault(frame.f_code.co_filename)
        elif event == "return" and frame.f_code.co_name == STEP_END:
            self._num_ended += 1
            if self._num_ended == STEP - 1 and frame.f_back is not None:
                self.files.setdefault(frame.f_back.f_code.co_filename)  # the loop itself, which runs already
            if self._num_ended == STEP:
                sys.setprofile(None)


def main() -> int:
    """Train with the arguments behind the first, and write the files' resolved paths there."""
    from rlpheads.engine import train

    profile = StepProfile()
    sys.setprofile(profile)
    code = train.main(sys.argv[2:])
    sys.setprofile(None)
    paths = {str(Path(name).resolve()): None for name in profile.files}
    Path(sys.argv[1]).write_text(json.dumps(list(paths)))
    return code


if __name__ == "__main__":
    sys.exit(main())
