"""Run every command of README.md, CONTRIBUTING.md and docs/, each made cheap where it is not, and say which ones fail.

python scripts/run_docs.py            # or: make commands
python scripts/run_docs.py --list     # what would be run, and how
python scripts/run_docs.py --only export

Commands are the lines of fenced blocks without a language (or sh, bash), and spans of code in the text that are whole
commands. They are run in a folder in which the names of the pages mean something: RUN, TREE, STORE. SUBSTITUTIONS and HOW say
what is changed: settings that make a command short, a dry run, or why it is not run; any other is run as it stands. Commands of
rlpheads that start no processes, and Python files, are run in forks of a process that has torch already.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PATIENCE = 600.0
"""Seconds that a command may take."""

TINY_VIT = '--model.args "{img_size: 8, patch_size: 4, embed_dim: 24, depth: 4, num_heads: 2}"'
TINY = (
    "--data.dataset digits --data.root null --data.val_fraction 0.9 --data.workers 0 --data.image_size 8 --data.loader torch "
    f"--device cpu --model.name vit_tiny_patch16_224 {TINY_VIT} --heads.labels 5 --max_steps 2 --batch_size 32 "
    "--accumulate 1 --precision fp32 --log.tensorboard false --run.dir FRESH"
)
_SMALL = (
    f"rlpheads train --config digits_vit --run.dir runs --epochs 2 --batch_size 32 --device cpu {TINY_VIT} --data.workers 0 "
    "--data.val_fraction 0.8 --ledger.every 1"
)
RUNS = (
    f"{_SMALL} --run.name digits_vit --data.canaries.mislabelled 10 --data.canaries.repeated 5 "
    "--data.canaries.near_duplicates 5",
    f"{_SMALL} --run.name plain",
    "rlpheads export runs/digits_vit NAME.safetensors",
)
"""What is there before the pages' commands: a run with canaries, one without, and exported weights."""
SUBSTITUTIONS = {
    r"\[[^]]*\]": "",
    r"--nproc-per-node (\d+|gpu)": "--nproc-per-node 2",
    r"--epoch \d+": "--epoch 1",
    r"/data/imagenet\.beton|STORE": "FRESH/store.beton",
    r"/data/imagenet": "TREE",
    r"rlpheads truth RUN( --networks \d+)?": "rlpheads truth runs/plain --networks 3",
    r"--data.root (OTHER|FOLDER)": "--data.root TREE10",
    r"\b(OUT|out\.safetensors)": "FRESH/out.safetensors",
}
"""What pages write for the sake of an example, as regular expressions, and what stands here in its place."""


@dataclass(frozen=True)
class How:
    """How a command of the pages is run.

    Attributes:
        begins: regular expression that its beginning matches.
        adds: words behind it, which make it cheap.
        instead: words in its place; {0} and {1} are its first two.
        skip: why it is not run.
    """

    begins: str
    adds: str = ""
    instead: str = ""
    skip: str = ""


HOW = (
    How(r"make -*\w", instead=f"make --directory {ROOT} --dry-run {{1}}"),
    How(r"(source|export \w+=)", skip="sets this shell up"),
    How(
        r"(sudo|apt|pip|wandb|kubectl|sbatch|srun|git|pre-commit)\b",
        skip="changes the machine, or needs one that is not here",
    ),
    How(r"tensorboard", skip="does not end by itself"),
    How(
        r".*(--nnodes|--node-rank|--rdzv|two_nodes)", skip="several nodes: tests/launch and tests/distributed run them"
    ),
    How(r".*(-h|--help)( \w+)?$"),
    How(
        r"rlpheads (train|audit( --taps)?|canaries|convert|verify|study|samples|export|truth|evaluate)$",
        skip="no whole command",
    ),
    How(r"rlpheads evaluate NAME", adds="--data.dataset imagefolder"),
    How(r"rlpheads evaluate RUN --data", adds="--data.val_fraction null"),
    How(r"(rlpheads train|.*torchrun|python -m torch\.distributed\.run)", adds=TINY),
    How(r"rlpheads audit .*two_layer", adds="--draws 4"),
    How(r"rlpheads audit RUN --root FOLDER", skip="FOLDER stands for images that were moved"),
    How(r"python -m (pytest|rlpheads\.memorization\.validation)", skip="minutes; make test and make test-slow run it"),
    How(r"rlpheads study", skip="an hour; tests/engine/commands/test_study.py runs a small one"),
    How(r"python -m rlpheads\.kernels\.tools", skip="needs a GPU, or half an hour; tests/kernels/tools runs them"),
    How(r"python (benchmarks|scripts)/\S+", instead="python {1} --help"),
)
"""The first that matches counts."""


@dataclass(frozen=True)
class Command:
    """A command of a page, and how it is run."""

    page: str
    line: int
    text: str
    how: How

    @property
    def shown(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}: {self.text}"

    def words(self, fresh: Path) -> str:
        """Return what is run in its place."""
        text = self.text
        for pattern, replacement in SUBSTITUTIONS.items():
            text = re.sub(pattern, replacement, text)
        if self.how.instead:
            text = self.how.instead.format(*text.split()[:2])
        return f"{text} {self.how.adds}".strip().replace("FRESH", str(fresh))


def find_commands(root: Path) -> Iterator[Command]:
    """Yield the commands of the pages, in order."""
    for page in [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]:
        for line, text in _code_of(page.read_text()):
            if _is_command(text):
                bare = re.sub(r"^(\w+=\S* )+", "", text)
                how = next((how for how in HOW if re.match(how.begins, bare)), How(""))
                yield Command(str(page.relative_to(root)), line, text, how)


def _code_of(page: str) -> Iterator[tuple[int, str]]:
    """Yield line number and text of each line of a fenced block, and of each span of code in the prose."""
    inside, language, pending, start = False, "", "", 0
    for number, line in enumerate(page.splitlines(), start=1):
        if line.startswith("```"):
            inside, language = not inside, line.strip("`").strip()
        elif not inside:
            yield from ((number, span) for span in re.findall(r"`([^`]+)`", line))
        elif language in ("", "sh", "bash"):
            start = start if pending else number
            pending += line.strip()
            if pending.endswith("\\"):  # it goes on in the next line
                pending = pending[:-1]
                continue
            yield start, re.sub(r"\s+#.*", "", pending).strip()
            pending = ""


def _is_command(text: str) -> bool:
    """Whether code is a command, not a name, a tree of folders, or one with a part left out."""
    words = re.sub(r"^(\w+=\S* )+", "", text).split()
    programs = (
        "rlpheads make python torchrun pip source export tensorboard wandb sbatch srun kubectl sudo apt apt-get git"
    )
    return len(words) > 1 and words[0] in programs.split() and "…" not in text and "..." not in text


def prepare(folder: Path) -> dict[str, str]:
    """Make what the pages' names mean: runs/digits_vit, RUN, TREE; return the environment of the commands."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    for name in ("configs", "engine", "studies", "examples", "scripts", "benchmarks", "launch", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    for command in RUNS:
        subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=True, capture_output=True)
    (folder / "RUN").symlink_to(folder / "runs" / "digits_vit")
    write_tree(folder / "TREE", "ab")
    write_tree(folder / "TREE10", "0123456789")
    return environment


def write_tree(root: Path, labels: str) -> None:
    """Write a small image folder with these classes."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label in labels:
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number:02d}.png")


def run(command: Command, folder: Path, environment: dict[str, str]) -> str:
    """Run a command; return what is wrong, or nothing."""
    fresh = Path(mkdtemp(dir=folder))
    words, printed = command.words(fresh), fresh / "printed.txt"
    split = shlex.split(words)
    if forkable(split):
        code = run_in_fork(split, folder, printed)
    else:
        with printed.open("w") as output:
            process = subprocess.Popen(["bash", "-c", words], cwd=folder, env=environment, stdout=output, stderr=output)
            code = wait(process.pid)
    if code == 0:
        return ""
    last = printed.read_text(errors="replace").strip().splitlines()[-1:]
    return f"{f'exit code {code}' if code is not None else f'not done after {PATIENCE:.0f} s'}: {words}\n      {' '.join(last)}"


def forkable(words: Sequence[str]) -> bool:
    """Whether a command needs no process of its own."""
    if words[0] == "rlpheads":
        return not any(word.startswith(("--nproc", "--nnodes")) for word in words)
    return words[0] == "python" and words[1].endswith(".py")


def run_in_fork(words: Sequence[str], folder: Path, printed: Path) -> int | None:
    """Run a command in a fork of this process, which has torch loaded; return its exit code, None where it does not end."""
    child = os.fork()
    if child:
        return wait(child)
    code: object = 1
    try:
        output = os.open(printed, os.O_CREAT | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.chdir(folder)
        sys.argv = list(words)
        if words[0] == "rlpheads":
            code = import_module("rlpheads.engine.cli").main(list(words[1:]))
        else:
            sys.argv = list(words[1:])
            sys.path[0] = str((folder / words[1]).resolve().parent)
            runpy.run_path(words[1], run_name="__main__")
            code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def wait(child: int) -> int | None:
    """Return the exit code of a child process; None for one that has to be ended."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def load_for_forks(environment: Mapping[str, str]) -> None:
    """Load what commands import, with their environment."""
    os.environ.update(environment)
    for name in ("torch", "timm", "torchvision", "scipy.stats", "matplotlib.figure", "rlpheads.engine.training.job"):
        import_module(name)


def main() -> int:
    """Run them all; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print what would be run")
    parser.add_argument("--only", default="", help="commands in which this regular expression is found")
    arguments = parser.parse_args()
    commands = [command for command in find_commands(ROOT) if re.search(arguments.only, command.text)]
    if arguments.list:
        for command in commands:
            print(f"{command.shown}\n    {command.how.skip or command.words(Path('FRESH'))}")
        return 0
    folder = Path(mkdtemp(prefix="rlpheads-docs-"))
    environment = prepare(folder)
    load_for_forks(environment)
    failed, seen = 0, set()
    for command in commands:
        if command.how.skip or command.text in seen:
            continue
        seen.add(command.text)
        begun = time.monotonic()
        wrong = run(command, folder, environment)
        failed += bool(wrong)
        print(f"{'FAILED' if wrong else 'ok'} {time.monotonic() - begun:5.1f} s  {command.shown}", flush=True)
        if wrong:
            print(f"      {wrong}", flush=True)
    skipped = sum(bool(command.how.skip) for command in commands)
    print(f"{len(seen)} commands run, {failed} failed; {skipped} lines not run (--list says why)")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
