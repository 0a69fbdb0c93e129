"""Stores: a split's images in one FFCV file (.beton), with the manifest they belong to beside it, checked on opening.

A store is a folder with two files for each split:

    train.beton          FFCV's own format, version 2: fields image, label and index, samples in canonical order
    train.manifest.npz   names, targets and sizes of the dataset's files, what could not be read, and hashes

The manifest is the very one of the dataset that was converted, so that indices, fingerprints, random labels, ledgers and
checkpoints are the same whether a run reads the dataset or its store. The layout of the .beton file is written down here,
not imported from FFCV, whose import takes seconds; a test compares the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.loaders.contract.errors import DatasetError, ImageReadError
from rlpheads.loaders.contract.manifest import ExifPolicy, Manifest
from rlpheads.loaders.contract.stored_json import check_types, parse_json, reasons_by_index
from rlpheads.loaders.decoding.decode import decode_rgb

JPG, RAW = 0, 1
PAGE_SIZE = 8 << 20
"""Bytes of FFCV's pages unless said otherwise; an image lies within one."""
BETON_VERSION = 2
FIELDS = (("image", 2), ("label", 1), ("index", 1))
"""Names of the fields, and FFCV's numbers of their types."""

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("f0", IMAGE), ("f1", "<i8"), ("f2", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

DATA_OFFSET = HEADER.itemsize + len(FIELDS) * FIELD.itemsize
"""Where the samples' metadata begin."""

MANIFEST_VERSION = 1
SPLITS = ("train", "val")
_COLUMNS = ("name_bytes", "name_offsets", "targets", "sizes")
_TYPES_OF_FACTS = {
    "version": int,
    "dataset": str,
    "classes": list,
    "split": str,
    "split_key": str | None,
    "fingerprint": str,
    "num_bytes": int,
    "tables_sha256": str,
    "encoding": dict,
    "unreadable": dict,
    "exif": str,
}


@dataclass(frozen=True)
class StoreFacts:
    """What a store says of itself.

    Attributes:
        dataset: Name of the dataset that it was made from.
        classes: Names of the classes.
        split: Name of the split.
        split_key: What the split was drawn with, None where the dataset has splits of its own.
        fingerprint: That of the manifest.
        num_bytes: Size of the .beton file.
        tables_sha256: Hash of the .beton file's header, metadata and allocation table.
        encoding: How the images were stored; for people.
        unreadable: Why an image could not be read when the store was made, by index.
        exif: What was done about EXIF orientation when the store was made.
    """

    dataset: str
    classes: tuple[str, ...]
    split: str
    split_key: str | None
    fingerprint: str
    num_bytes: int
    tables_sha256: str
    encoding: dict[str, Any]
    unreadable: dict[int, str]
    exif: ExifPolicy = "ignore"


@dataclass(frozen=True)
class BetonSource:
    """The images of one split of a store; see `rlpheads.loaders.sources.datasets.ImageSource`.

    Attributes:
        manifest: That of the dataset, without a root.
        path: The .beton file.
        samples: `SAMPLE` (N,), where and how each image lies in it.
        num_bytes: int64 (N,), bytes that each image takes in it.
        facts: What the store says of itself.
    """

    manifest: Manifest
    path: Path
    samples: NDArray[np.void]
    num_bytes: NDArray[np.int64]
    facts: StoreFacts

    def read(self, index: int) -> Tensor:
        """Read one image as it is stored, without FFCV: uint8 (3, H, W), red, green, blue.

        Raises:
            ImageReadError: If it could not be read when the store was made, or cannot be now.
        """
        data = self._stored(index)
        image = self.samples["f0"][index]
        if image["mode"] == JPG:
            return self.decode(index, data)
        pixels_HW3 = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(int(image["height"]), -1, 3)
        return pixels_HW3.permute(2, 0, 1)

    def encoded(self, index: int) -> bytes | None:
        """Return the JPEG file of an image; None where its pixels are stored.

        Raises:
            ImageReadError: If it could not be read when the store was made, or cannot be now.
        """
        return self._stored(index) if self.samples["f0"]["mode"][index] == JPG else None

    def decode(self, index: int, data: bytes) -> Tensor:
        """Decode what `encoded` returned: uint8 (3, H, W).

        Raises:
            ImageReadError: If it is not a whole image.
        """
        try:
            return decode_rgb(data)
        except ValueError as error:
            raise self.error(index, str(error)) from error

    def _stored(self, index: int) -> bytes:
        if reason := self.manifest.unreadable.get(index):
            raise self.error(index, reason)
        try:
            with self.path.open("rb") as file:
                file.seek(int(self.samples["f0"]["data_ptr"][index]))
                data = file.read(int(self.num_bytes[index]))
        except OSError as error:
            raise self.error(index, error.strerror or str(error)) from error
        if len(data) != self.num_bytes[index]:
            raise self.error(index, "the store ends before the image does")
        return data

    def error(self, index: int, reason: str) -> ImageReadError:
        """Return the error that names an image of this store."""
        return ImageReadError(index, f"{self.path}, {self.manifest.name(index)}", reason)


def is_store(folder: Path) -> bool:
    """Whether a folder holds at least one file of a store."""
    return any((folder / f"{split}.beton").exists() for split in SPLITS)


def open_store(
    folder: Path, dataset: str, split_key: str | None, exif: ExifPolicy = "ignore"
) -> tuple[BetonSource, BetonSource]:
    """Open both splits of a store.

    Args:
        folder: What `rlpheads convert` wrote.
        dataset: Name of the dataset that it must have been made from.
        split_key: What the run's split is drawn with, if anything.
        exif: What the run does about EXIF orientation, which the store must have done.

    Raises:
        DatasetError: If a file is missing, cut short or foreign, or the store is of another dataset or split.
    """
    train, val = (open_beton(folder / f"{split}.beton") for split in SPLITS)
    for source in (train, val):
        facts = source.facts
        if facts.dataset != dataset:
            raise DatasetError(f"{source.path} was made from {facts.dataset}, not {dataset}: set data.dataset to match")
        if facts.exif != exif:
            raise DatasetError(
                f"{source.path} was made with --data.exif {facts.exif}, but the run has data.exif {exif}: give both the same"
            )
        if facts.split_key != split_key:
            made, wanted = (key or "the folders train and val" for key in (facts.split_key, split_key))
            raise DatasetError(
                f"{source.path} was split by {made}, but the run splits by {wanted}: give `rlpheads convert` the run's "
                "--data.val_fraction and, as --seed, its --seeds.split or else its --seed, from which these seeds are drawn"
            )
    if train.manifest.classes != val.manifest.classes:
        raise DatasetError(
            f"{folder}: train.beton and val.beton differ in their classes; convert both from one dataset"
        )
    return train, val


def count_store_classes(folder: Path) -> int:
    """Return the number of classes of a store, from what its training split says of itself.

    Raises:
        DatasetError: If a file of that split is missing or damaged.
    """
    _, facts = _read_manifest(folder / "train.beton", columns=())
    return len(facts.classes)


def open_beton(path: Path) -> BetonSource:
    """Open one split, and check that the .beton file is whole and the one that its manifest was written for.

    Raises:
        DatasetError: If it is not, with what was found and what to do.
    """
    columns, facts = _read_manifest(path)
    manifest = Manifest(
        **columns, classes=facts.classes, root=None, split=facts.split, unreadable=facts.unreadable, exif=facts.exif
    )
    try:
        manifest.check()
    except ValueError as error:
        raise DatasetError(f"{manifest_path(path)} is damaged ({error}): convert the dataset again") from error
    if manifest.fingerprint != facts.fingerprint:
        raise DatasetError(
            f"{manifest_path(path)} is damaged: its fingerprint is {manifest.fingerprint}, but {facts.fingerprint} was "
            "written. Convert the dataset again"
        )
    samples, allocations = _read_tables(path, facts, manifest.num_samples)
    index_N = np.arange(manifest.num_samples)
    found = ((samples["f2"], index_N), (samples["f1"], manifest.targets), (allocations["sample_id"], index_N))
    if not all(np.array_equal(there, wanted) for there, wanted in found):
        raise DatasetError(
            f"{path} does not hold the samples of its manifest in canonical order. Convert the dataset again"
        )
    return BetonSource(manifest, path, samples, allocations["size"].astype(np.int64), facts)


def manifest_path(beton: Path) -> Path:
    """Return where the manifest of a .beton file lies."""
    return beton.with_suffix(".manifest.npz")


def write_manifest(file: BinaryIO, manifest: Manifest, facts: StoreFacts) -> None:
    """Write what stands beside a .beton file."""
    fields = {"version": MANIFEST_VERSION} | {name: value for name, value in vars(facts).items() if name != "classes"}
    # Class names are any bytes, as names of folders are: JSON keeps them as surrogates, in ASCII.
    text = json.dumps(fields | {"classes": list(facts.classes)})
    columns = {name: getattr(manifest, name) for name in _COLUMNS}
    np.savez(file, facts=np.frombuffer(text.encode("ascii"), dtype=np.uint8), **columns)


def header(num_samples: int, page_size: int, alloc_table_ptr: int, fingerprint: str) -> NDArray[np.uint8]:
    """Return the beginning of a .beton file: its header and the descriptions of its fields, as bytes.

    The manifest's fingerprint stands among the arguments of the last field, which has none of its own and which FFCV does
    not read.
    """
    head = np.zeros(1, dtype=HEADER)
    head[0] = (BETON_VERSION, len(FIELDS), page_size, num_samples, alloc_table_ptr)
    fields = np.zeros(len(FIELDS), dtype=FIELD)
    for field, (name, type_id) in zip(fields, FIELDS, strict=True):
        field["type_id"] = type_id
        field["name"][: len(name)] = np.frombuffer(name.encode("ascii"), dtype=np.uint8)
    fields[-1]["arguments"][: len(fingerprint)] = np.frombuffer(fingerprint.encode("ascii"), dtype=np.uint8)
    return np.concatenate([head.view(np.uint8), fields.view(np.uint8)])


def tables_sha256(*tables: NDArray[Any]) -> str:
    """Hash what says where the images lie: header and field descriptions, metadata, allocation table."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(np.ascontiguousarray(table).view(np.uint8).data)
    return digest.hexdigest()


def _read_manifest(path: Path, columns: Sequence[str] = _COLUMNS) -> tuple[dict[str, Any], StoreFacts]:
    """Return columns of the manifest beside a .beton file, and the facts."""
    beside = manifest_path(path)
    for needed in (path, beside):
        if not needed.is_file():
            raise DatasetError(
                f"{needed} is missing: a store has {path.name} and {beside.name}, as `rlpheads convert` writes them"
                + (" (a .beton file made by other means says nothing of the dataset)" if needed == beside else "")
            )
    try:
        with beside.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            facts = _parse_facts(arrays["facts"].tobytes(), beside)
            found = {name: arrays[name] for name in columns}
    except DatasetError:
        raise
    except Exception as error:  # a damaged archive ends in nearly any of them
        raise DatasetError(f"{beside} is damaged ({error}): convert the dataset again") from error
    return found, facts


def _parse_facts(content: bytes, beside: Path) -> StoreFacts:
    """Return what a store says of itself.

    Raises:
        DatasetError: If another version wrote it.
        ValueError: If it is damaged.
    """
    fields = parse_json(content)
    if type(fields) is dict and fields.get("version", MANIFEST_VERSION) != MANIFEST_VERSION:
        raise DatasetError(f"{beside} is of another version of rlpheads: convert the dataset again")
    if type(fields) is dict:
        fields.setdefault("exif", "ignore")  # stores of earlier versions do not say
    fields = check_types(fields, _TYPES_OF_FACTS)
    if fields["exif"] not in get_args(ExifPolicy):
        raise ValueError("what it says of EXIF orientation is no policy")
    if not all(isinstance(name, str) for name in fields["classes"]):
        raise ValueError("classes are no names")
    return StoreFacts(
        **{key: value for key, value in fields.items() if key not in ("version", "classes", "unreadable")},
        classes=tuple(fields["classes"]),
        unreadable=reasons_by_index(fields["unreadable"]),
    )


def _allocation_offset(header: NDArray[np.uint8]) -> int:
    return int(header[: HEADER.itemsize].view(HEADER)["alloc_table_ptr"][0])


def _read_tables(path: Path, facts: StoreFacts, num_samples: int) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """Return metadata and allocation table of a .beton file that is what the manifest says."""
    size = path.stat().st_size
    if size != facts.num_bytes:
        cut = "cut short" if size < facts.num_bytes else "another file"
        raise DatasetError(
            f"{path} is {cut}: it has {size:,} bytes, but {facts.num_bytes:,} were written. Copy it again, or convert the "
            "dataset again"
        )
    header = np.fromfile(path, dtype=np.uint8, count=DATA_OFFSET)
    if DATA_OFFSET + num_samples * SAMPLE.itemsize > size or _allocation_offset(header) > size:
        raise DatasetError(f"{path} has no room for the tables of {num_samples:,} samples: convert the dataset again")
    # Mapped, not read: the ranks of a node share these pages.
    samples = np.memmap(path, dtype=SAMPLE, mode="r", offset=DATA_OFFSET, shape=(num_samples,))
    allocations = np.fromfile(path, dtype=ALLOCATION, offset=_allocation_offset(header))
    found = tables_sha256(header, samples, allocations)
    if found != facts.tables_sha256:
        raise DatasetError(
            f"{path} is not the file that {manifest_path(path).name} was written for: the hash of its tables is {found}, "
            f"not {facts.tables_sha256}. Keep the files of a store together, or convert the dataset again"
        )
    return samples, allocations
