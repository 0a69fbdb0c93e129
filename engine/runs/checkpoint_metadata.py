"""Checkpoint files read without running code: torch.distributed.checkpoint keeps its metadata as a pickle.

A pickle may name any function and call it, so only the classes that the format is made of are admitted. torch's reader
takes tensors by torch.load with weights_only; entries that are no tensors (an empty mapping of states) it would unpickle
freely, and here they are read as the tensors are.
"""

from __future__ import annotations

import io
import pathlib
import pickle
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem

from rlpheads.engine.config.errors import UserError

FILE = ".metadata"


def _classes_of_the_format() -> dict[tuple[str, str], Any]:
    """Return what the metadata may be made of, by the module and name that stand in a pickle."""
    names = [*metadata.__all__, "_MEM_FORMAT_ENCODING"]
    classes = {(metadata.__name__, name): getattr(metadata, name) for name in names}
    classes |= {(filesystem.__name__, name): getattr(filesystem, name) for name in ("_StorageInfo", "_StoragePrefix")}
    dtypes = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    classes |= {("torch", name): value for name, value in dtypes.items()}
    classes |= {("torch", "Size"): torch.Size}
    classes |= {("torch.serialization", "_get_layout"): torch.serialization._get_layout}  # torch.strided's pickle
    paths = [("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")]  # the second from Python 3.13 on
    return classes | dict.fromkeys(paths, pathlib.PosixPath)


_CLASSES = _classes_of_the_format()


class MetadataError(UserError):
    """The metadata is no checkpoint's, or asks for what no checkpoint needs; the message says for what."""


def fill_state(checkpoint: Path, state: dict[str, Any], **options: Any) -> None:
    """Fill the tensors of `state` in place from a checkpoint; `options` are those of torch.distributed.checkpoint.load.

    Raises:
        torch.distributed.checkpoint.api.CheckpointException: what `read_metadata` refuses, and files that do not fit.
    """
    dcp.load(state, storage_reader=_MetadataReader(checkpoint), planner=_WeightsOnlyPlanner(), **options)


def read_tensors(checkpoint: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Return a checkpoint's tensors whose names begin with `prefix`, on the CPU, by the rest of their names.

    Raises:
        MetadataError: see `read_metadata`.
    """
    entries = read_metadata(checkpoint).state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is: one process reads all
        fill_state(checkpoint, state, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def missing_names(checkpoint: Path, part: str, names: Iterable[str]) -> list[str]:
    """Return which of the names a checkpoint lacks in a part of its state; none where nobody can tell: loading it will."""
    try:
        there = read_metadata(checkpoint).state_dict_metadata
    except MetadataError:
        return []
    return [name for name in names if f"{part}.{name}" not in there]


class _WeightsOnlyPlanner(dcp.DefaultLoadPlanner):
    """Admits no pickle that is more than tensors, numbers, text and collections of them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # raises; else torch's own, which reads without the restriction, is safe
        value.seek(0)
        super().load_bytes(read_item, value)


class _MetadataReader(dcp.FileSystemReader):
    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        found = read_metadata(Path(self.path))
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class _FormatUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _CLASSES[module, name]
        except KeyError:
            raise MetadataError(f"{FILE} asks for {module}.{name}, which is no part of a checkpoint") from None


def read_metadata(checkpoint: Path) -> Metadata:
    """Return what a checkpoint holds, and where in its files.

    Raises:
        MetadataError: it is missing or damaged, asks for a class that is no part of the format, or lists something
            else than entries of the checkpoint's own files.
    """
    try:
        with (checkpoint / FILE).open("rb") as file:
            found = _FormatUnpickler(file).load()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MetadataError(f"{FILE} is missing") from error
    except (MetadataError, OSError):
        raise
    except Exception as error:  # a damaged pickle ends in nearly any of them
        raise MetadataError(f"{FILE} cannot be read ({type(error).__name__}: {error})") from error
    if not _lists_own_entries(found):
        raise MetadataError(f"{FILE} lists something else than entries of the checkpoint's own files")
    return found


def _lists_own_entries(found: Any) -> bool:
    if type(found) is not Metadata or type(found.storage_meta) not in (StorageMeta, type(None)):
        return False
    entries, places = found.state_dict_metadata, found.storage_data
    if type(entries) is not dict or type(places) is not dict:
        return False
    return all(type(entry) in (TensorStorageMetadata, BytesStorageMetadata) for entry in entries.values()) and all(
        type(index) is MetadataIndex and _is_place_in_own_file(place) for index, place in places.items()
    )


def _is_place_in_own_file(place: Any) -> bool:
    """Whether an entry names a file of the checkpoint's folder itself, not one elsewhere on the disk."""
    if type(place) is not filesystem._StorageInfo or type(place.relative_path) is not str:
        return False
    return Path(place.relative_path).name == place.relative_path
