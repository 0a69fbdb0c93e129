"""Every file of a tree decoded once, strictly; the damaged ones are printed, and recorded for all loaders."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rlpheads.engine.runs.folder import write_atomically
from rlpheads.engine.runs.sources import scan_cache
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.sources.beton import is_store
from rlpheads.loaders.sources.image_folder import scan_splits
from rlpheads.loaders.sources.strict_decoding import Verdict, examine_split
from rlpheads.loaders.sources.verification import FOLDER_NAME, BadFile, Verification, verification_path

_SECONDS_BETWEEN_SAVES = 5.0
_SHOWN = 20
"""Rows of the printed table; the file has all."""


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


def verify_tree(options: VerifyOptions, console: Console) -> bool:
    """Decode every file of a tree, write down and print what was found; return whether all files are fine.

    Raises:
        DatasetError: there is no such tree, it is a store, or an unfinished file of findings is damaged.
        OSError: nothing can be written.
        KeyboardInterrupt: after saving how far it is.
    """
    if options.workers is not None and options.workers < 1:
        raise DatasetError(f"--workers is {options.workers}; it must be at least 1")
    if is_store(options.root):
        raise DatasetError(
            f"{options.root} is a store: its images were decoded when it was made, and what could not be "
            "read is noted in it; verify the tree that it was made of"
        )
    manifests = scan_splits(options.root, scan_cache(rescan=True))  # runs take the listing up
    print_remarks(manifests, console)
    found = [verify_split(manifest, options, console) for manifest in manifests]
    return not any(findings.complaints for findings in found)


def print_remarks(manifests: Sequence[Manifest], console: Console) -> None:
    """Print once what the scan of a tree passed over."""
    for line in dict.fromkeys(line for manifest in manifests for line in manifest.remarks):
        console.print(line, markup=False, soft_wrap=True)


def verify_split(manifest: Manifest, options: VerifyOptions, console: Console) -> Verification:
    """Decode the files of a split that were not decoded before; save what is found every few seconds, atomically.

    Raises:
        DatasetError: If an unfinished file of findings is damaged.
        OSError: If nothing can be written.
        KeyboardInterrupt: After saving how far it is.
    """
    path = verification_path(options.folder, manifest.split)
    unfinished = path.with_suffix(".unfinished.json")
    # An unfinished one is the newer: it goes as soon as it is finished.
    found = _read_verification(manifest, [] if options.again else [unfinished, path])
    write_atomically(unfinished, found.to_json())  # finds out, before the work, whether it can be kept
    title = f"{manifest.split}: "
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=manifest.num_samples, completed=found.num_checked)
        saved = time.monotonic()
        try:
            for verdicts in examine_split(manifest, found.num_checked, options.workers or len(os.sched_getaffinity(0))):
                found = _add_verdicts(found, manifest, verdicts)
                progress.update(task, completed=found.num_checked, description=title + _count_complaints(found))
                if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    write_atomically(unfinished, found.to_json())
                    saved = time.monotonic()
        finally:
            write_atomically(unfinished, found.to_json())
    write_atomically(path, found.to_json())
    unfinished.unlink()
    _print_verification(found, manifest, path, console)
    return found


def _read_verification(manifest: Manifest, paths: list[Path]) -> Verification:
    """Return what the first of the files says of these very images; nothing, if none does."""
    for path in paths:
        if path.exists() and (found := Verification.read(path)).fingerprint == manifest.fingerprint:
            return found
    return Verification(manifest.fingerprint, manifest.num_samples)


def _add_verdicts(found: Verification, manifest: Manifest, verdicts: list[Verdict]) -> Verification:
    complaints = dict(found.complaints)
    for index, verdict in enumerate(verdicts, start=found.num_checked):
        if verdict is not None:
            name = os.fsencode(manifest.name(index)).decode("utf-8", "backslashreplace")
            complaints[index] = BadFile(verdict[0], name, verdict[1])  # type: ignore[arg-type]
    return replace(found, num_checked=found.num_checked + len(verdicts), complaints=complaints)


def _print_verification(found: Verification, manifest: Manifest, path: Path, console: Console) -> None:
    console.print(f"{manifest.split}: {found.num_samples} files, {_count_complaints(found)}; written: {path}")
    if not found.complaints:
        return
    table = Table(padding=(0, 1))
    for heading in ("index", "file", "status", "reason"):
        table.add_column(heading, overflow="fold")
    for index, complaint in sorted(found.complaints.items())[:_SHOWN]:
        table.add_row(str(index), complaint.name, complaint.status, complaint.reason)
    console.print(table)
    if len(found.complaints) > _SHOWN:
        console.print(f"and {len(found.complaints) - _SHOWN} more, all in {path}")
    console.print("A run with data.on_error raise will refuse to start; with skip it leaves these out.")


def _count_complaints(found: Verification) -> str:
    kinds = [complaint.status for complaint in found.complaints.values()]
    return f"{kinds.count('unreadable')} unreadable, {kinds.count('damaged')} damaged"
