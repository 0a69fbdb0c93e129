"""What becomes of odd and damaged image files in each loader: how many were tried, and how many came out as stated.

python benchmarks/failure_corpus.py             # every file through every loader that is installed; some minutes
python benchmarks/failure_corpus.py --files     # and what became of each file

Every file of the tests' corpus (tests/helpers/image_corpus.py) is tried three times: with `data.on_error` "skip", beside
all the others; with "raise", alone in a tree; and with "skip" again after `rlpheads verify` has seen the tree. FFCV reads a
store, so it is `rlpheads convert` that meets the files. An error or a skipped row counts if it names the right index and
file, a picture if it is the one that Pillow reads. Exit code 1: something was not as stated.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from image_corpus import CORPUS, CorpusFile, Outcome, write_corpus

from rlpheads.loaders.adapters.torch_transforms import EvalTransform
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import DatasetError, ImageReadError
from rlpheads.loaders.contract.options import LoaderOptions, OnError
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.beton import open_beton
from rlpheads.loaders.sources.datasets import ImageSource, open_dataset
from rlpheads.loaders.store.image_encoding import Encoding
from rlpheads.loaders.store.write_ffcv import Job, write_beton

KINDS = ("torch", "ffcv", "dali")
CROP = CropSpec(32)
MOST_LEVELS = 1.0
"""Mean difference, of 255, within which a picture is the one that was meant; another one is off by tens."""
STATED = {
    Outcome.READ: "its picture",
    Outcome.REFUSED: "error | skipped",
    Outcome.DAMAGED: "either; once verified skipped",
}


@dataclass(frozen=True)
class Trial:
    """What became of a file: "read", "skipped", "error", or what was wrong.

    Attributes:
        skipping: With `on_error` "skip".
        strict: With "raise".
        verified: With "skip", after `rlpheads verify`.
    """

    skipping: str
    strict: str
    verified: str

    def is_as_stated(self, outcome: Outcome) -> bool:
        """Return whether that is what a loader must do with a file of this kind."""
        allowed = {
            Outcome.READ: {("read", "read", "read")},
            Outcome.REFUSED: {("skipped", "error", "skipped")},
            Outcome.DAMAGED: {("read", "read", "skipped"), ("skipped", "error", "skipped")},
        }
        return astuple(self) in allowed[outcome]


def opened(kind: str, root: Path, on_error: OnError) -> ImageSource:
    """Open a tree as a loader reads it: for FFCV, as a store that is made of it.

    Raises:
        ImageReadError: If a store is to be made of an unreadable image that is not to be skipped.
    """
    source, _ = open_dataset("imagefolder", root, seed=0)
    if kind != "ffcv":
        return source
    path = Path(root, "store", "train.beton")
    path.unlink(missing_ok=True)
    write_beton(Job(source, path, "imagefolder", None, Encoding("raw", short_side=300), on_error))
    return open_beton(path)


def outcomes(kind: str, root: Path, files: dict[int, CorpusFile], on_error: OnError) -> dict[int, str]:
    """Read a tree once; return what became of its files, by index, up to an error that ends it."""
    found = {}
    try:
        source = opened(kind, root, on_error)
        order = Order(source.manifest.num_samples, 8, shuffle=False, partial="pad")
        options = LoaderOptions(on_error=on_error, num_workers=1)
        for batch in make_loader(kind, source, order, CROP, train=False, options=options):
            for index, image in zip(batch.index.tolist(), batch.images, strict=True):
                if index in files:
                    found[index] = _picture_outcome(files[index], image)
            found |= {error.index: _error_outcome(files, error, "skipped") for error in batch.skipped}
    except ImageReadError as error:
        found[error.index] = _error_outcome(files, error, "error")
    return found


def _picture_outcome(file: CorpusFile, image: torch.Tensor) -> str:
    if file.outcome is not Outcome.READ:
        return "read"
    meant = EvalTransform(CROP).make(torch.from_numpy(file.pixels()).permute(2, 0, 1), None)
    levels = (image.float() - meant.float()).abs().mean().item()
    return "read" if levels <= MOST_LEVELS else f"another picture, by {levels:.1f} levels"


def _error_outcome(files: dict[int, CorpusFile], error: ImageReadError, how: str) -> str:
    if error.index not in files:
        raise RuntimeError(f"a plain picture beside the files is refused: {error}")
    return how if error.path.endswith(files[error.index].name) else f"another file is named: {error}"


def trials(kind: str, files: Sequence[CorpusFile], folder: Path) -> dict[str, Trial]:
    """Try each file three times through a loader; return what became of it, by name."""
    root = folder / kind
    by_index = write_corpus(root, tuple(files))
    skipping = outcomes(kind, root, by_index, "skip")
    verify(root)
    verified = outcomes(kind, root, by_index, "skip")
    tried = {}
    for index, file in by_index.items():
        alone = folder / f"{kind}_{file.name}"
        (own,) = write_corpus(alone, (file,))
        strict = outcomes(kind, alone, {own: file}, "raise")
        told = (each or "nothing came of it" for each in (skipping.get(index), strict.get(own), verified.get(index)))
        tried[file.name] = Trial(*told)
    return tried


def verify(root: Path) -> None:
    """Run `rlpheads verify` on a tree: exit code 1 says that something was found."""
    command = [sys.executable, "-m", "rlpheads.engine.cli", "verify", "--data.root", str(root), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"rlpheads verify failed: {done.stderr}")


def summary(files: Sequence[CorpusFile], tried: dict[str, dict[str, Trial] | None]) -> Table:
    """Return how many files came out as stated, by what is odd about them and by loader (None: not installed)."""
    table = Table(title="files that came out as stated, of those tried")
    for heading in ("what is odd", "files", "stated", *tried):
        table.add_column(heading, justify="right" if heading == "files" else "left")
    for kind in dict.fromkeys(file.kind for file in files):
        some = [file for file in files if file.kind == kind]
        table.add_row(kind, str(len(some)), STATED[some[0].outcome], *(_cell(some, found) for found in tried.values()))
    table.add_section()
    table.add_row("all", str(len(files)), "", *(_cell(files, found) for found in tried.values()))
    return table


def _cell(files: Sequence[CorpusFile], found: dict[str, Trial] | None) -> str:
    if found is None:
        return "not installed"
    stated = sum(found[file.name].is_as_stated(file.outcome) for file in files)
    damaged = {file.outcome for file in files} == {Outcome.DAMAGED}
    pictures = sum(found[file.name].skipping == "read" for file in files)
    return f"{stated} of {len(files)}" + (f" ({pictures} with a picture)" if damaged else "")


def file_table(files: Sequence[CorpusFile], tried: dict[str, dict[str, Trial] | None]) -> Table:
    """Return what became of each file: skipping, strict, verified."""
    table = Table(title='what became of each file under "skip", "raise", and "skip" after rlpheads verify')
    for heading in ("file", *tried):
        table.add_column(heading)
    for file in files:
        cells = (", ".join(astuple(found[file.name])) if found else "" for found in tried.values())
        table.add_row(file.name, *cells)
    return table


def try_all(files: Sequence[CorpusFile], kinds: Sequence[str] = KINDS) -> dict[str, dict[str, Trial] | None]:
    """Try files through loaders; None stands for one that is not installed."""
    tried: dict[str, dict[str, Trial] | None] = {}
    for kind in kinds:
        with TemporaryDirectory() as folder:
            try:
                tried[kind] = trials(kind, files, Path(folder))
            except DatasetError as error:
                if "not installed" not in str(error):
                    raise
                tried[kind] = None
    return tried


def main(arguments: Sequence[str] | None = None) -> int:
    """Try, print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="print what became of each file, too")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # Pillow's, of damaged files
    tried = try_all(CORPUS)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if given.files:
        console.print(file_table(CORPUS, tried))
    console.print(summary(CORPUS, tried))
    stated = (found[file.name].is_as_stated(file.outcome) for found in tried.values() if found for file in CORPUS)
    return 0 if all(stated) else 1


if __name__ == "__main__":
    sys.exit(main())
