"""List the package's files outside kernels/ that one training step enters, in the order met: what a reader has to open.

python scripts/trace_step.py                        # this tree
python scripts/trace_step.py --commit HEAD~10       # that commit's own code
python scripts/trace_step.py -- --regularizer.factor 2

The step is one of the real loop, by default on the digits with a small model; arguments of training may follow `--`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from commit_worktree import REPOSITORY, ROOMS, CommitError, check_rooms, commit_worktree, run_in_tree

SMALL = ("--config", "configs/digits_vit.yaml", "--model.args.depth", "2", "--model.args.embed_dim", "48")
SHORT = ("--device", "cpu", "--max_steps", "4")


def main(argv: Sequence[str] | None = None) -> int:
    """Trace, print the files and their count; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", help="trace this commit instead of this tree")
    parser.add_argument("training", nargs="*", help="arguments of training")
    arguments = parser.parse_args(argv)
    try:
        with commit_worktree(arguments.commit) if arguments.commit else nullcontext(REPOSITORY) as tree:
            files = files_of_a_step(tree, arguments.training)
    except CommitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for number, name in enumerate(files, 1):
        print(f"{number:3d}  {name}")
    print(f"{len(files)} files outside kernels/ in one step")
    return 0


def files_of_a_step(tree: Path, training: Sequence[str]) -> list[str]:
    """Return the files of a tree's rooms, but for kernels/, that one step enters, by their paths from its root.

    Raises:
        CommitError: the training fails.
    """
    check_rooms(tree)
    profile = Path(__file__).with_name("step_profile.py")
    with TemporaryDirectory(prefix="rlpheads_trace_") as folder:
        out = Path(folder) / "files.json"
        done = run_in_tree(tree, [str(profile), str(out), *SMALL, *training, *SHORT, "--run.dir", folder])
        if done.returncode != 0 or not out.exists():
            raise CommitError(f"training ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        paths = [Path(name) for name in json.loads(out.read_text())]
    names = [path.relative_to(tree) for path in paths if path.is_relative_to(tree)]
    return [str(name) for name in names if name.parts[0] in ROOMS and name.parts[0] != "kernels"]


if __name__ == "__main__":
    sys.exit(main())
