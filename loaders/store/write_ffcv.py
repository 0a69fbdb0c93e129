"""Write a split's images into a .beton file of FFCV, in canonical order; an interrupted write resumes.

Images are encoded by several processes and appended by this one. A journal beside the unfinished file lists
what is written, so that a second start goes on behind the last image; the finished file takes its name
in one step. The file can be read by FFCV's own loader too (fields image, label, index).
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from rlpheads.loaders.contract.errors import DatasetError, ImageReadError, LoaderError
from rlpheads.loaders.contract.stored_json import check_types, parse_json, reasons_by_index
from rlpheads.loaders.sources import beton
from rlpheads.loaders.sources.beton import PAGE_SIZE, RAW
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.loaders.store.image_encoding import Encoding, StoredImage, encode_image

_CHUNK = 128
"""Images between two entries of the journal."""

_ROW = np.dtype([("image", beton.IMAGE), ("size", "<u8")])


@dataclass(frozen=True)
class Job:
    """What is to be written, and how.

    Attributes:
        source: The images.
        path: The .beton file.
        dataset: Name of the dataset.
        split_key: What its split was drawn with, if anything.
        encoding: How images are stored.
        on_error: An unreadable image ends the writing, or is noted with its reason, and a black pixel put in its place.
        num_workers: Processes that encode; 0 encodes in this one.
        page_size: Bytes of a page, a power of two that FFCV allows.

    Raises:
        DatasetError: For a value out of its range.
    """

    source: ImageSource
    path: Path
    dataset: str
    split_key: str | None
    encoding: Encoding
    on_error: Literal["raise", "skip"] = "raise"
    num_workers: int = 0
    page_size: int = PAGE_SIZE

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise DatasetError(f"{self.num_workers} encoding processes were asked for; it must be 0 or more")
        if self.page_size.bit_count() != 1 or not 2 << 20 <= self.page_size < 4 << 30:
            raise DatasetError(
                f"the page size is {self.page_size}; it must be a power of two from {2 << 20} to {2 << 30}"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What must be equal for a job to resume an unfinished file."""
        return {
            "fingerprint": self.source.manifest.fingerprint,
            "encoding": asdict(self.encoding),
            "page_size": self.page_size,
        }

    def sidecar(self, suffix: str) -> Path:
        """Return the path of a file that lies beside the .beton file while it is written."""
        return self.path.with_name(self.path.name + suffix)


def write_beton(job: Job, advance: Callable[[int], object] = int) -> beton.StoreFacts:
    """Write a split, or resume an interrupted write.

    Args:
        job: What and how.
        advance: Called with the number of images that were written since the last call; first with those of an earlier
            start. What it returns is thrown away, so `int` does nothing.

    Returns:
        What the store says of itself.

    Raises:
        DatasetError: If the file is there, is being written, was started with other settings, or an image is larger than
            a page.
        ImageReadError: If an image cannot be read and `on_error` is "raise".
        LoaderError: If an encoding process dies.
        OSError: If the disk is full, for one. What was written stays, for another start.
    """
    if job.path.exists():
        raise DatasetError(f"{job.path} is there already; delete it first, or name another")
    job.path.parent.mkdir(parents=True, exist_ok=True)
    with _open_unfinished(job) as file:
        advance(file.num_images)
        for chunk in _encoded_chunks(job, file.num_images):
            file.append(chunk)
            advance(len(chunk))
        return file.finish()


def _encoded_chunks(job: Job, first: int) -> Iterator[list[StoredImage]]:
    """Yield the images from the first one on, in order, encoded by several processes."""
    num_samples = job.source.manifest.num_samples
    chunks = [range(start, min(start + _CHUNK, num_samples)) for start in range(first, num_samples, _CHUNK)]
    loader = DataLoader(
        _Chunks(job),
        sampler=chunks,
        batch_size=None,
        collate_fn=_no_collation,
        num_workers=job.num_workers,
        worker_init_fn=_init_encoding_process,
        generator=torch.Generator(),
    )
    try:
        for chunk in loader:
            if isinstance(chunk, ImageReadError):
                raise ImageReadError(*chunk.args)
            yield chunk
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise LoaderError(f"an encoding process died; start again to go on from there, with fewer. {error}") from error


class _Chunks(Dataset[list[StoredImage] | ImageReadError]):
    """The dataset in an encoding process: its items are lists of encoded images."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __getitem__(self, indices: Sequence[int]) -> list[StoredImage] | ImageReadError:
        """Encode some images. An error is returned: torch would raise it with a process's traceback as its message."""
        try:
            return [self._encode(index) for index in indices]
        except ImageReadError as error:
            return error

    def _encode(self, index: int) -> StoredImage:
        try:
            return encode_image(self._job.source, index, self._job.encoding)
        except ImageReadError as error:
            if self._job.on_error == "raise":
                raise
            return StoredImage(RAW, 1, 1, b"\0\0\0", error.reason)


def _no_collation(item: Any) -> Any:
    """Return a chunk as it is."""
    return item


def _init_encoding_process(worker_id: int) -> None:  # noqa: ARG001
    """Prepare an encoding process: one thread, and Ctrl-C left to the process that writes."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _UnfinishedFile:
    """A .beton file that is being appended to.

    Attributes:
        num_images: How many are in it.
    """

    def __init__(self, job: Job, data: IO[bytes], journal: IO[bytes], reasons: IO[str]) -> None:
        """Resume what an earlier start left, as far as its journal goes."""
        self._job, self._data, self._journal, self._reasons = job, data, journal, reasons
        journal.seek(0)
        known = journal.read()
        whole = len(known) // _ROW.itemsize * _ROW.itemsize
        self._rows: list[NDArray[np.void]] = [np.frombuffer(known[:whole], dtype=_ROW)]
        self.num_images = len(self._rows[0])
        if self.num_images > job.source.manifest.num_samples:
            raise _damaged(job, ".rows", "it has more rows than there are samples")
        noted = _read_reasons(job)
        journal.truncate(whole)
        self._unreadable = {index: reason for index, reason in noted.items() if index < self.num_images}
        tables = beton.DATA_OFFSET + job.source.manifest.num_samples * beton.SAMPLE.itemsize
        self._end = -(-tables // job.page_size) * job.page_size
        if self.num_images:
            last = self._rows[0][-1]
            self._end = int(last["image"]["data_ptr"] + last["size"])

    def append(self, chunk: Sequence[StoredImage]) -> None:
        """Write some images, then tell the journal."""
        first = self.num_images
        rows = np.zeros(len(chunk), dtype=_ROW)
        for place, image in enumerate(chunk):
            pointer = self._allocate(first + place, len(image.data))
            self._data.seek(pointer)
            self._data.write(image.data)
            rows[place] = ((image.mode, image.width, image.height, pointer), len(image.data))
            if image.unreadable is not None:
                self._unreadable[first + place] = image.unreadable
                self._reasons.write(json.dumps([first + place, image.unreadable]) + "\n")
        for file in (self._data, self._reasons):
            _flush(file)
        self._journal.write(rows.tobytes())
        _flush(self._journal)
        self._rows.append(rows)
        self.num_images += len(rows)

    def _allocate(self, index: int, size: int) -> int:
        """Return where the next image lies: behind the one before, or on a new page if it does not fit on this one."""
        page_size = self._job.page_size
        if size > page_size:
            name = self._job.source.manifest.name(index)
            needed = 1 << (size - 1).bit_length()
            raise DatasetError(
                f"image {index} ({name}) takes {size:,} bytes, but a page holds {page_size:,}: make the images smaller "
                f"(--long or --short), store them as jpg, or give --page-size {needed}"
            )
        if self._end % page_size + size > page_size:
            self._end = -(-self._end // page_size) * page_size
        pointer, self._end = self._end, self._end + size
        return pointer

    def finish(self) -> beton.StoreFacts:
        """Write the tables and the manifest, and give the files their names."""
        job, manifest = self._job, self._job.source.manifest
        rows = np.concatenate(self._rows)
        samples = np.zeros(len(rows), dtype=beton.SAMPLE)
        samples["f0"], samples["f1"], samples["f2"] = rows["image"], manifest.targets, np.arange(len(rows))
        allocations = np.zeros(len(rows), dtype=beton.ALLOCATION)
        allocations["sample_id"], allocations["ptr"] = np.arange(len(rows)), rows["image"]["data_ptr"]
        allocations["size"] = rows["size"]
        header = beton.header(len(rows), job.page_size, self._end, manifest.fingerprint)
        self._data.seek(0)
        self._data.write(header.tobytes() + samples.tobytes())
        self._data.seek(self._end)
        self._data.write(allocations.tobytes())
        self._data.truncate()
        _flush(self._data)
        facts = beton.StoreFacts(
            dataset=job.dataset,
            classes=manifest.classes,
            split=manifest.split,
            split_key=job.split_key,
            fingerprint=manifest.fingerprint,
            num_bytes=self._end + allocations.nbytes,
            tables_sha256=beton.tables_sha256(header, samples, allocations),
            encoding=asdict(job.encoding),
            unreadable=self._unreadable,
            exif=manifest.exif,
        )
        self._publish(facts)
        return facts

    def _publish(self, facts: beton.StoreFacts) -> None:
        """Give the files their names, the .beton file last: it is what says that the store is whole."""
        job = self._job
        with job.sidecar(".manifest").open("wb") as file:
            beton.write_manifest(file, job.source.manifest, facts)
            _flush(file)
        job.sidecar(".manifest").replace(beton.manifest_path(job.path))
        job.sidecar(".partial").replace(job.path)
        for suffix in _JOURNALS:
            job.sidecar(suffix).unlink()
        folder = os.open(job.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


_JOURNALS = (".rows", ".unreadable", ".job")


@contextmanager
def _open_unfinished(job: Job) -> Iterator[_UnfinishedFile]:
    """Open the unfinished file, for this process alone.

    Raises:
        DatasetError: If another process writes it, or it was started with other settings.
    """
    job.sidecar(".partial").touch()
    with (
        job.sidecar(".partial").open("r+b") as data,
        job.sidecar(".rows").open("a+b") as journal,
        job.sidecar(".unreadable").open("a+", encoding="utf-8") as reasons,
    ):
        try:
            # Of this process alone: encoding processes that outlive it for a moment do not hold it.
            fcntl.lockf(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise DatasetError(f"another process is writing {job.path} at this moment") from None
        _check_settings(job)
        yield _UnfinishedFile(job, data, journal, reasons)


def _read_reasons(job: Job) -> dict[int, str]:
    """Return why images could not be read, by index, as the unfinished file notes it; a torn last line is left out.

    Raises:
        DatasetError: If another line is damaged.
    """
    noted = {}
    try:
        for line in job.sidecar(".unreadable").read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                index, reason = parse_json(line)
                noted.update(reasons_by_index({str(index): reason}))
    except (ValueError, TypeError) as error:
        raise _damaged(job, ".unreadable", str(error)) from error
    return noted


def _damaged(job: Job, suffix: str, reason: str) -> DatasetError:
    return DatasetError(f"{job.sidecar(suffix)} is damaged ({reason}): {_begin_again(job)}")


def _begin_again(job: Job) -> str:
    leftovers = shlex.join(str(job.sidecar(suffix)) for suffix in (".partial", *_JOURNALS))
    return f"delete what is there to begin again: rm {leftovers}"


def _check_settings(job: Job) -> None:
    """Compare the job's settings with those of the unfinished file, or write them down."""
    started = job.sidecar(".job")
    if not started.exists():
        started.write_text(json.dumps(job.settings))
        return
    try:
        earlier = check_types(parse_json(started.read_bytes()), dict.fromkeys(job.settings, object))
    except ValueError as error:
        raise _damaged(job, ".job", str(error)) from error
    changed = [
        f"{name} is {value} now and was {earlier[name]}"
        for name, value in job.settings.items()
        if earlier[name] != value
    ]
    if changed:
        raise DatasetError(
            f"{job.path} was begun with other settings: {'; '.join(changed)}. Give the same ones to go on, or "
            f"{_begin_again(job)}"
        )


def _flush(file: IO[Any]) -> None:
    """Wait until what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())
