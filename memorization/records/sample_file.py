"""The file that says which image a row of a ledger is: name, class and, where one was planted, the kind of canary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rlpheads.memorization.atomic_file import atomic_file
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping


class SampleFileError(ValueError):
    """A file of samples that cannot be read."""


@dataclass(frozen=True)
class SplitSamples:
    """The N samples of one split, in canonical order.

    Attributes:
        split: its name, such as "train".
        fingerprint: of its manifest, which the ledgers name too.
        file_bytes: uint8, the names of all files one after another, in the file system's own bytes.
        file_offsets: int64 (N + 1,), where each name begins, and the end.
        true_class_N: int64, the class before noise or canaries replaced it.
        given_class_N: int64, the class that is trained on.
        canary: kinds of the canaries among the samples, by index.
    """

    split: str
    fingerprint: str
    file_bytes: NDArray[np.uint8]
    file_offsets: NDArray[np.int64]
    true_class_N: NDArray[np.int64]
    given_class_N: NDArray[np.int64]
    canary: dict[int, str]


SAMPLE_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("split", pa.string()),
        ("file", pa.string()),
        ("class", pa.int64()),
        ("class_name", pa.string()),
        ("given_class", pa.int64()),
        ("given_name", pa.string()),
        ("canary", pa.string()),
    ]
)
"""Columns of the file. `class` is what the image shows, `given_class` what it is trained as; `canary` is null for most."""


def write_samples(path: str | Path, splits: Sequence[SplitSamples], class_names: Sequence[str]) -> None:
    """Write the samples of all splits, one split behind the other, to one Parquet file, whole or not at all."""
    facts = {"version": _VERSION, "fingerprints": {each.split: each.fingerprint for each in splits}}
    schema = SAMPLE_SCHEMA.with_metadata({_METADATA_KEY: json.dumps(facts).encode()})
    names = pa.array([_readable(name.encode(errors="surrogateescape")) for name in class_names], pa.string())
    options = {"compression": "zstd", "write_page_checksum": True}
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for each in splits:
            writer.write_table(_to_arrow(each, names, schema))


def read_samples(path: str | Path) -> pa.Table:
    """Read a file of samples: the columns of `SAMPLE_SCHEMA`.

    Raises:
        FileNotFoundError: there is no such file.
        SampleFileError: it is damaged, or of another kind or version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of samples {path}")
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        text = (table.schema.metadata or {}).get(_METADATA_KEY, b"")
        version = parse_mapping(text, {"version": "count", "fingerprints": "mapping"})["version"]
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError, DamagedJsonError) as error:
        raise SampleFileError(f"{path} is no readable file of samples: {' '.join(str(error).split())}") from error
    if version != _VERSION or not table.schema.equals(SAMPLE_SCHEMA):
        raise SampleFileError(f"{path} is a file of samples of version {version}, and this code reads {_VERSION}")
    return table


_VERSION = 1
_METADATA_KEY = b"rlpheads.samples"


def _to_arrow(samples: SplitSamples, class_names: pa.Array, schema: pa.Schema) -> pa.Table:
    num_samples = len(samples.given_class_N)
    canary: list[str | None] = [None] * num_samples
    for index, kind in samples.canary.items():
        canary[index] = kind
    columns = {
        "index": np.arange(num_samples),
        "split": pa.repeat(samples.split, num_samples),
        "file": _file_names(samples),
        "class": samples.true_class_N,
        "class_name": class_names.take(pa.array(samples.true_class_N)),
        "given_class": samples.given_class_N,
        "given_name": class_names.take(pa.array(samples.given_class_N)),
        "canary": pa.array(canary, pa.string()),
    }
    return pa.table(columns, schema=schema)


def _file_names(samples: SplitSamples) -> pa.Array:
    """Return the names as text; all at once where they are UTF-8."""
    buffers = [None, pa.py_buffer(samples.file_offsets.tobytes()), pa.py_buffer(samples.file_bytes.tobytes())]
    names = pa.Array.from_buffers(pa.large_binary(), len(samples.file_offsets) - 1, buffers)
    try:
        return names.cast(pa.large_string()).cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([_readable(name) for name in names.to_pylist()], pa.string())


def _readable(name: bytes) -> str:
    """Return a name in the file system's bytes as text that a table can hold; what is no UTF-8 is escaped."""
    return name.decode(errors="backslashreplace")
