"""`rlpheads verify`: every file of a tree decoded once, strictly; what is not whole is written down for all loaders."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rlpheads.engine.runs.folder import write_atomically
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.sources.beton import is_store
from rlpheads.loaders.sources.image_folder import scan_splits
from rlpheads.loaders.sources.verification import FOLDER_NAME, Complaint, Findings, examine_files, findings_path

EXIT_FINE, EXIT_FOUND, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
_FILES_A_TASK = 32
_SECONDS_BETWEEN_SAVES = 5.0
_SHOWN = 20

Verdict = tuple[str, str] | None
Examine = Callable[[list[str], list[int]], list[Verdict]]


@dataclass(frozen=True)
class VerifyOptions:
    """How a tree is verified.

    Attributes:
        root: Folder of the images, as `data.root`.
        out: Folder of the findings; None: ROOT/.rlpheads.
        workers: Processes that decode; None: one for each core.
        again: Begin anew where there are findings already.
    """

    root: Path
    out: Path | None = None
    workers: int | None = None
    again: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the findings."""
        return self.out or self.root / FOLDER_NAME


def run_verify(options: VerifyOptions) -> int:
    """Verify a tree, write and print what was found.

    Returns:
        0 if every file is fine, 1 if some are not, 2 if the tree cannot be verified, 130 if it was interrupted.
    """
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        if options.workers is not None and options.workers < 1:
            raise DatasetError(f"--workers is {options.workers}; it must be at least 1")
        if is_store(options.root):
            raise DatasetError(
                f"{options.root} is a store: its images were decoded when it was made, and what could not be "
                "read is noted in it; verify the tree that it was made of"
            )
        found = [verify_split(manifest, options, console) for manifest in scan_splits(options.root)]
    except KeyboardInterrupt:
        again = ", without --again," if options.again else ""
        print(f"interrupted; the same command{again} goes on where it was", file=sys.stderr)
        return EXIT_INTERRUPTED
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"error: {error.filename or options.folder}: {error.strerror}; name a folder with --out", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_FOUND if any(findings.complaints for findings in found) else EXIT_FINE


def verify_split(manifest: Manifest, options: VerifyOptions, console: Console) -> Findings:
    """Look at the files of a split that were not looked at before; keep what is found, from time to time, in one move.

    Raises:
        DatasetError: If an unfinished file of findings is damaged.
        OSError: If nothing can be written.
        KeyboardInterrupt: After saving how far it is.
    """
    path = findings_path(options.folder, manifest.split)
    unfinished = path.with_suffix(".unfinished.json")
    # An unfinished one is the newer: it goes as soon as it is finished.
    found = _begin(manifest, [] if options.again else [unfinished, path])
    write_atomically(unfinished, found.to_json())  # finds out, before the work, whether it can be kept
    title = f"{manifest.split}: "
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=manifest.num_samples, completed=found.num_checked)
        saved = time.monotonic()
        try:
            for verdicts in examined(manifest, found.num_checked, options.workers or _num_cores()):
                found = _extended(found, manifest, verdicts)
                progress.update(task, completed=found.num_checked, description=title + _count(found))
                if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    write_atomically(unfinished, found.to_json())
                    saved = time.monotonic()
        finally:
            write_atomically(unfinished, found.to_json())
    write_atomically(path, found.to_json())
    unfinished.unlink()
    _report(found, manifest, path, console)
    return found


def examined(manifest: Manifest, first: int, workers: int, examine: Examine = examine_files) -> Iterator[list[Verdict]]:
    """Yield the verdicts on the files from `first` on, in canonical order, some at a time.

    A file that ends the process of its decoder is found out by itself, and the others go on.

    Args:
        manifest: The files.
        first: Index of the first that is looked at.
        workers: Processes that decode.
        examine: What they do, see `examine_files`; a function of a module.
    """
    while first < manifest.num_samples:
        try:
            for verdicts in _examined_by_pool(manifest, first, workers, examine):
                first += len(verdicts)
                yield verdicts
        except BrokenProcessPool:
            verdicts = _examined_apart(manifest, _task(manifest, first), examine)
            first += len(verdicts)
            yield verdicts


def _examined_by_pool(manifest: Manifest, first: int, workers: int, examine: Examine) -> Iterator[list[Verdict]]:
    """Yield the verdicts in order; raises BrokenProcessPool where a process dies."""
    with _pool(workers) as pool:
        pending: list[Future[list[Verdict]]] = []
        try:
            while first < manifest.num_samples or pending:
                while first < manifest.num_samples and len(pending) < 4 * workers:
                    indices = _task(manifest, first)
                    pending.append(pool.submit(examine, *_files(manifest, indices)))
                    first = indices.stop
                yield pending.pop(0).result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _examined_apart(manifest: Manifest, indices: range, examine: Examine) -> list[Verdict]:
    """Look at files one of which ends its process: in halves, and halves of halves, until it stands alone."""
    try:
        with _pool(1) as pool:
            return pool.submit(examine, *_files(manifest, indices)).result()
    except BrokenProcessPool:
        if len(indices) == 1:
            return [("unreadable", "it ends the process of the decoder")]
        middle = len(indices) // 2
        return [v for half in (indices[:middle], indices[middle:]) for v in _examined_apart(manifest, half, examine)]


def _pool(workers: int) -> ProcessPoolExecutor:
    """Processes that leave an interrupt from the terminal to their parent."""
    context = get_context("forkserver")
    context.set_forkserver_preload([examine_files.__module__])  # torch is imported once, not once a process
    return ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))


def _task(manifest: Manifest, first: int) -> range:
    return range(first, min(first + _FILES_A_TASK, manifest.num_samples))


def _files(manifest: Manifest, indices: range) -> tuple[list[str], list[int]]:
    return [str(manifest.path(index)) for index in indices], manifest.sizes[indices.start : indices.stop].tolist()


def _begin(manifest: Manifest, paths: list[Path]) -> Findings:
    """Return what is known of these very files already."""
    for path in paths:
        if path.exists() and (found := Findings.read(path)).fingerprint == manifest.fingerprint:
            return found
    return Findings(manifest.fingerprint, manifest.num_samples)


def _extended(found: Findings, manifest: Manifest, verdicts: list[Verdict]) -> Findings:
    complaints = dict(found.complaints)
    for index, verdict in enumerate(verdicts, start=found.num_checked):
        if verdict is not None:
            name = os.fsencode(manifest.name(index)).decode("utf-8", "backslashreplace")
            complaints[index] = Complaint(verdict[0], name, verdict[1])  # type: ignore[arg-type]
    return replace(found, num_checked=found.num_checked + len(verdicts), complaints=complaints)


def _report(found: Findings, manifest: Manifest, path: Path, console: Console) -> None:
    console.print(f"{manifest.split}: {found.num_samples} files, {_count(found)}; written: {path}", highlight=False)
    if not found.complaints:
        return
    table = Table(padding=(0, 1))
    for heading in ("index", "file", "status", "reason"):
        table.add_column(heading, overflow="fold")
    for index, complaint in sorted(found.complaints.items())[:_SHOWN]:
        table.add_row(str(index), complaint.name, complaint.status, complaint.reason)
    console.print(table)
    if len(found.complaints) > _SHOWN:
        console.print(f"and {len(found.complaints) - _SHOWN} more, all in {path}", highlight=False)
    console.print(
        "A run with data.on_error raise will refuse to start; with skip it leaves these out.", highlight=False
    )


def _count(found: Findings) -> str:
    kinds = [complaint.status for complaint in found.complaints.values()]
    return f"{kinds.count('unreadable')} unreadable, {kinds.count('damaged')} damaged"


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))
