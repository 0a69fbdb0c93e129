"""Many starts of the training program for the price of one: torch is imported once, and each start is a fork of that."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_FORKS = """
import json, os, sys
from rlpheads.engine.training import job  # job imports torch, and everything else
from rlpheads.engine import train
for name, (argv, variables) in json.loads(sys.argv[1]).items():
    if (child := os.fork()) == 0:
        sys.stdout = sys.stderr = open(name, "w", buffering=1)
        os.environ.update(variables)
        code = 99
        try:
            code = train.main(argv)
        finally:
            if code == 99:
                sys.excepthook(*sys.exc_info())
            os._exit(code)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
"""


class Start(NamedTuple):
    """How one start differs from the others."""

    argv: Sequence[str]
    variables: Mapping[str, str] = {}


class End(NamedTuple):
    """Exit code, and what was said on both streams; 99 and a traceback for an exception."""

    code: int
    output: str

    @property
    def complaint(self) -> str:
        """The one line that says what is wrong."""
        (line,) = [line for line in self.output.splitlines() if line.startswith("error: ")]
        return line


def start_each(
    folder: Path, starts: Mapping[str, Start], env: Mapping[str, str], launcher: Sequence[str] = ()
) -> dict[str, End]:
    """Run every start to its end, one after another, and return how they ended, by name.

    Args:
        folder: where they run; their output stays there under their names.
        starts: arguments and environment of each.
        env: environment of all.
        launcher: a command before Python's, such as one that takes rights away.
    """
    command = [*launcher, sys.executable, "-c", _FORKS, json.dumps(starts)]
    done = subprocess.run(command, cwd=folder, env=dict(env), capture_output=True, text=True, check=True)
    codes = map(int, done.stdout.split())
    return {name: End(code, (folder / name).read_text()) for name, code in zip(starts, codes, strict=True)}
