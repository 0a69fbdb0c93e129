"""The file of a run's canaries: which training samples were planted, and their true classes.

Needs no scipy: a training writes it at its start.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rlpheads.memorization.atomic_file import atomic_file
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping


class CanaryError(ValueError):
    """A canary file that cannot be read, or does not fit the ledgers."""


@dataclass(frozen=True)
class Canaries:
    """Canaries of a training split: parallel arrays over P planted samples, sorted by index.

    Attributes:
        fingerprint: of the manifest that they stand in.
        index: int64, canonical index.
        kind: text, such as "mislabelled". All copies of an image are of its kind, the original among them.
        original: int64, index of the image that this one is a copy of; the index itself where it is no copy.
        true_class: int64, the class before it was replaced.
    """

    fingerprint: str
    index: NDArray[np.int64]
    kind: NDArray[np.str_]
    original: NDArray[np.int64]
    true_class: NDArray[np.int64]

    @property
    def kinds(self) -> dict[str, int]:
        """Number of samples of each kind, by name."""
        names, counts = np.unique(self.kind, return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))


def write_canaries(path: str | Path, canaries: Canaries) -> None:
    """Write the canaries to one Parquet file, whole or not at all."""
    columns = {name: getattr(canaries, name) for name in _SCHEMA.names}
    text = json.dumps({"version": _VERSION, "fingerprint": canaries.fingerprint})
    schema = _SCHEMA.with_metadata({_METADATA_KEY: text.encode()})
    with atomic_file(path) as temporary:
        pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}, schema=schema), temporary)


def read_canaries(path: str | Path) -> Canaries:
    """Read a canary file.

    Raises:
        FileNotFoundError: there is no such file.
        CanaryError: the file is damaged, or of another kind or version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of canaries {path}")
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        raise CanaryError(f"{path} is no readable Parquet file: {' '.join(str(error).split())}") from error
    fingerprint = _read_fingerprint(path, table.schema)
    columns = {name: table.column(name) for name in _SCHEMA.names}
    if any(column.null_count for column in columns.values()):
        raise CanaryError(f"{path} has rows without a value: it is damaged")
    arrays = {name: column.to_numpy().copy() for name, column in columns.items()}  # Arrow's own are read-only
    index = arrays["index"]
    if len(index) and (index[0] < 0 or (np.diff(index) <= 0).any()):
        raise CanaryError(f"{path} lists samples that are not in order: it is damaged")
    return Canaries(fingerprint, **arrays | {"kind": arrays["kind"].astype(np.str_)})


def _read_fingerprint(path: Path, schema: pa.Schema) -> str:
    if (text := (schema.metadata or {}).get(_METADATA_KEY)) is None or not schema.equals(_SCHEMA):
        raise CanaryError(f"{path} is no file of canaries of version {_VERSION}")
    try:
        metadata = parse_mapping(text, {"version": "count", "fingerprint": "text"})
    except DamagedJsonError as error:
        raise CanaryError(f"{path} is no file of canaries of version {_VERSION}: {error}") from error
    if metadata["version"] != _VERSION:
        raise CanaryError(f"{path} is a file of canaries of version {metadata['version']}, not {_VERSION}")
    return str(metadata["fingerprint"])


_VERSION = 1
_METADATA_KEY = b"rlpheads.canaries"
_SCHEMA = pa.schema(
    [("index", pa.int64()), ("kind", pa.string()), ("original", pa.int64()), ("true_class", pa.int64())]
)
