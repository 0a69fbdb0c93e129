"""The file of samples: every row names its image, whatever the file system called it."""

import numpy as np
import pyarrow as pa
import pytest

from rlpheads.memorization.records.sample_file import (
    SAMPLE_SCHEMA,
    SampleFileError,
    SplitSamples,
    read_samples,
    write_samples,
)


def split(name: str, files: list[bytes], true: list[int], given: list[int], canary: dict[int, str]) -> SplitSamples:
    offsets = np.cumsum([0, *map(len, files)]).astype(np.int64)
    return SplitSamples(
        name, f"of {name}", np.frombuffer(b"".join(files), np.uint8), offsets, np.array(true), np.array(given), canary
    )


def test_rows_name_their_images(tmp_path):
    train = split("train", [b"a/1.png", "b/ü.png".encode(), b"b/1.png#2"], [0, 1, 1], [0, 0, 1], {1: "noisy"})
    heldout = split("val", [b"a/2.png"], [0], [0], {})
    write_samples(tmp_path / "samples.parquet", [train, heldout], ["ant", "bee"])
    table = read_samples(tmp_path / "samples.parquet")
    assert table.schema.equals(SAMPLE_SCHEMA)
    assert table.to_pylist()[1] == {
        "index": 1,
        "split": "train",
        "file": "b/ü.png",
        "class": 1,
        "class_name": "bee",
        "given_class": 0,
        "given_name": "ant",
        "canary": "noisy",
    }
    assert table.column("index").to_pylist() == [0, 1, 2, 0]
    assert table.column("split").to_pylist() == ["train"] * 3 + ["val"]
    assert table.column("canary").null_count == 3


def test_names_that_are_no_text_are_escaped(tmp_path):
    odd = split("train", [b"a/\xff.png", b"a/1.png"], [0, 0], [0, 0], {})
    write_samples(tmp_path / "samples.parquet", [odd], ["caf\udce9"])  # as os.fsdecode gives a Latin-1 folder
    table = read_samples(tmp_path / "samples.parquet")
    assert table.column("file").to_pylist() == ["a/\\xff.png", "a/1.png"]
    assert table.column("class_name").to_pylist() == ["caf\\xe9"] * 2


def test_what_is_no_file_of_samples_is_named(tmp_path):
    path = tmp_path / "samples.parquet"
    with pytest.raises(FileNotFoundError, match="there is no file of samples"):
        read_samples(path)
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(SampleFileError, match="is no readable file of samples"):
        read_samples(path)
    pa.parquet.write_table(pa.table({"index": [0]}), path)
    with pytest.raises(SampleFileError, match=r"samples\.parquet is no readable file of samples"):
        read_samples(path)
