"""Compare two commits, or two run folders: losses step by step, figures, weights, ledgers. Says where they part first.

python scripts/compare_runs.py HEAD~1 HEAD -- --config configs/digits_vit.yaml --epochs 2 --log_every 1
python scripts/compare_runs.py --nproc-per-node 2 main my-branch -- --config configs/digits_vit.yaml --max_steps 20
python scripts/compare_runs.py runs/before runs/after

A commit is checked out into a temporary worktree and trained there with that tree's own code and files, so that a path of
data must be absolute. Every refactor should show that it changes nothing by this script.

Exit code: 0 the runs are equal, 1 they differ, 2 they could not be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from commit_worktree import CommitError, commit_worktree, is_commit, run_in_tree
from run_differences import Difference, Section, compare_folders

EQUAL, DIFFERENT, NOT_COMPARED = 0, 1, 2
NUM_SHOWN = 5
"""Differences of a file that are printed."""


class UsageError(ValueError):
    """What was asked for makes no sense; the message says what is allowed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print; return the exit code."""
    own, training = _split(list(sys.argv[1:] if argv is None else argv))
    arguments = _parser().parse_args(own)
    try:
        _check(arguments, training)
        with nullcontext(arguments.keep) if arguments.keep else TemporaryDirectory(prefix="rlpheads_runs_") as folder:
            runs = Path(folder).resolve()
            left, right = (
                run_folder(source, runs / side, training, arguments.nproc_per_node)
                for side, source in (("a", arguments.a), ("b", arguments.b))
            )
            return report(compare_folders(left, right), arguments.a, arguments.b)
    except (UsageError, CommitError) as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_COMPARED


def run_folder(source: str, out: Path, training: Sequence[str], num_ranks: int) -> Path:
    """Return the run folder that `source` names; a commit is trained into the folder `out`.

    Raises:
        CommitError: the training fails.
    """
    if _is_run(source):
        return Path(source)
    with commit_worktree(source) as tree:
        print(f"training {source} ...", flush=True)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        program = ["engine/train.py", *training, "--run.dir", str(out.parent), "--run.name", out.name]
        done = run_in_tree(tree, [*(launcher if num_ranks > 1 else []), *program])
    if done.returncode != 0:
        raise CommitError(
            f"training {source} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return out


def report(sections: Sequence[Section], left: str, right: str) -> int:
    """Print what was compared, and where the runs part first; return the exit code."""
    if not any(section.num_compared for section in sections):
        print("neither run holds any figure")
        return NOT_COMPARED
    for section in sections:
        verdict = f"{len(section.differences)} differ" if section.differences else "equal"
        print(f"{section.name}: {section.num_compared:,} figures compared, {verdict}")
        for difference in section.differences[:NUM_SHOWN]:
            print(f"    {_sentence(difference)}")
        if len(section.differences) > NUM_SHOWN:
            print(f"    and {len(section.differences) - NUM_SHOWN} more")
    parted = [section for section in sections if section.differences]
    if not parted:
        print(f"equal: {left} and {right}")
        return EQUAL
    print(f"different: {left} and {right} part first in {parted[0].name}, {_sentence(parted[0].differences[0])}")
    return DIFFERENT


def _sentence(difference: Difference) -> str:
    return f"{difference.place}: {difference.figure} is {difference.left!r} and {difference.right!r}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", help="a commit, or a run folder")
    parser.add_argument("b", help="a commit, or a run folder")
    parser.add_argument("--nproc-per-node", type=int, default=1, help="ranks that train a commit (default: 1)")
    parser.add_argument("--keep", metavar="DIR", help="train into DIR/a and DIR/b, and leave them there")
    return parser


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments at `--`: those of this script, and those of training."""
    end = argv.index("--") if "--" in argv else len(argv)
    return argv[:end], argv[end + 1 :]


def _check(arguments: argparse.Namespace, training: Sequence[str]) -> None:
    """Refuse what cannot be compared, before anything is trained."""
    sources = (arguments.a, arguments.b)
    for source in sources:
        if not _is_run(source) and not is_commit(source):
            raise UsageError(f"got {source!r}; allowed: a run folder (it holds a metrics.jsonl), or a commit")
    num_commits = sum(not _is_run(source) for source in sources)
    if num_commits and not training:
        raise UsageError("a commit needs training arguments: ... -- --config configs/digits_vit.yaml --epochs 2")
    if not num_commits and training:
        raise UsageError(f"two run folders are trained already; got training arguments {' '.join(training)}")
    kept = [Path(arguments.keep) / side for side in "ab"] if arguments.keep and num_commits else []
    if occupied := [str(folder) for folder in kept if folder.exists()]:
        raise UsageError(f"--keep: {', '.join(occupied)} exists; name an empty folder")


def _is_run(source: str) -> bool:
    return (Path(source) / "metrics.jsonl").is_file()


if __name__ == "__main__":
    sys.exit(main())
