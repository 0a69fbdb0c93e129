"""Run a commit's own code: the commit is checked out into a temporary git worktree, whose rooms come first on the path.

The installed package is an editable install of the main tree. `.typing/rlpheads` of the worktree links to the worktree's
rooms; first on PYTHONPATH, it is found before the installed package. In older commits it is a namespace package, in newer
ones it has an `__init__.py`; both work, and `check_rooms` proves it before anything is run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("engine", "loaders", "kernels", "memorization")
_PRINT_ROOMS = f"""
from importlib import import_module
for room in {ROOMS}:
    print(next(iter(import_module(f"rlpheads.{{room}}").__path__)))
"""


class CommitError(RuntimeError):
    """A commit cannot be checked out or run; the message says what was tried and what came back."""


def is_commit(name: str) -> bool:
    """Whether git knows a commit by this name."""
    command = ["git", "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode == 0


@contextmanager
def commit_worktree(commit: str) -> Iterator[Path]:
    """Check a commit out into a temporary worktree and give its path; the worktree is removed afterwards.

    Raises:
        CommitError: git refuses, or python would import another tree's rooms there.
    """
    with TemporaryDirectory(prefix="rlpheads_") as folder:
        tree = Path(folder).resolve() / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            check_rooms(tree)
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def check_rooms(tree: Path) -> None:
    """Make sure that a process in this tree imports all four rooms from this tree.

    Raises:
        CommitError: some room comes from elsewhere.
    """
    done = run_in_tree(tree, ["-c", _PRINT_ROOMS])
    found = [Path(line).resolve() for line in done.stdout.splitlines()]
    if done.returncode != 0 or found != [tree / room for room in ROOMS]:
        raise CommitError(f"rlpheads should come from {tree}, but python imports {found}\n{done.stderr}")


def run_in_tree(tree: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run this python with arguments in a tree, its rooms first on the path; standard output and error are kept."""
    path = os.pathsep.join([str(tree / ".typing"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommitError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
