"""A store that is not whole, or not the one that is meant, is refused on opening."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.sources import beton
from rlpheads.loaders.sources.beton import open_beton
from rlpheads.loaders.sources.datasets import count_classes, open_dataset
from rlpheads.loaders.store.image_encoding import Encoding
from rlpheads.loaders.store.write_ffcv import Job, write_beton


@pytest.fixture(scope="module")
def store_of_digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    for source in open_dataset("digits", seed=0):
        path = folder / f"{source.manifest.split}.beton"
        write_beton(Job(source, path, "digits", "val_fraction 0.2 and seed 0", Encoding("raw")))
    return folder


@pytest.fixture
def store(store_of_digits, tmp_path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(store_of_digits, tmp_path / "store"))


def change(path: Path, at: int, mask: int = 0xFF) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ mask]))


def test_a_store_is_opened_in_place_of_its_dataset(store):
    ours, theirs = open_dataset("digits", store, seed=0), open_dataset("digits", seed=0)
    assert [source.manifest for source in ours] == [source.manifest for source in theirs]
    assert (ours[0].read(77) == theirs[0].read(77)).all()


def test_classes_are_counted_from_the_manifest_alone(store):
    assert count_classes("digits", store) == 10
    (store / "val.manifest.npz").unlink()
    assert count_classes("digits", store) == 10
    (store / "train.manifest.npz").unlink()
    with pytest.raises(DatasetError, match=r"train\.manifest\.npz is missing"):
        count_classes("digits", store)


@pytest.mark.wrong("file")
@pytest.mark.parametrize("cut", [1, 100, 200_000, 8_000_000])
def test_a_file_cut_short_is_refused(store, cut):
    path = store / "train.beton"
    whole = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(whole - cut)
    with pytest.raises(
        DatasetError, match=rf"train.beton is cut short: it has {whole - cut:,} bytes, but {whole:,} were"
    ):
        open_dataset("digits", store, seed=0)


@pytest.mark.wrong("file")
@pytest.mark.parametrize("place", ["header", "fields", "samples", "allocations"])
def test_a_changed_table_is_refused(store, place):
    path = store / "train.beton"
    at = {"header": 9, "fields": 500, "samples": beton.DATA_OFFSET + 70, "allocations": path.stat().st_size - 5}[place]
    change(path, at)
    with pytest.raises(DatasetError, match="is not the file that train.manifest.npz was written for"):
        open_beton(path)


@pytest.mark.wrong("file")
def test_a_foreign_file_of_the_same_size_is_refused(store):
    """Another seed's split: as many images of the same size, other digits."""
    other, _ = open_dataset("digits", seed=9)
    (store / "train.beton").unlink()
    foreign = Job(other, store / "other" / "train.beton", "digits", None, Encoding("raw"))
    write_beton(foreign)
    foreign.path.replace(store / "train.beton")
    with pytest.raises(DatasetError, match="is not the file that"):
        open_beton(store / "train.beton")


@pytest.mark.wrong("file")
def test_a_beton_file_without_its_manifest_is_refused(store):
    (store / "train.manifest.npz").unlink()
    with pytest.raises(DatasetError, match=r"train.manifest.npz is missing: .*a \.beton file made by other means"):
        open_dataset("digits", store, seed=0)


@pytest.mark.wrong("file")
def test_half_a_store_is_refused(store):
    (store / "val.beton").unlink()
    with pytest.raises(DatasetError, match=r"val.beton is missing: a store has"):
        open_dataset("digits", store, seed=0)


@pytest.mark.wrong("file")
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9, 0.999])
def test_a_damaged_manifest_is_refused(store, fraction):
    path = store / "train.manifest.npz"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(DatasetError, match=r"train.manifest.npz is damaged"):
        open_beton(store / "train.beton")


@pytest.mark.wrong("file")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b"[1]", "it holds no mapping"),
        (b"\xff", "can't decode byte"),
        (b"{}", "it lacks"),
        ({"classes": [1]}, "classes are no names"),
        ({"classes": None}, "classes is None"),
        ({"num_bytes": "many"}, "num_bytes is 'many'"),
        ({"num_bytes": -1}, "num_bytes is -1"),
        ({"unreadable": {"x": "reason"}}, "no reason by index"),
        ({"unreadable": {"99999": "reason"}}, "samples unreadable that it does not have"),
        ({"one more": 1}, "'one more', which is no key"),
    ],
)
def test_facts_of_another_form_are_one_error_with_the_reason(store, content, reason):
    path = store / "train.manifest.npz"
    with np.load(path) as arrays:
        columns = dict(arrays)
    if isinstance(content, dict):
        content = json.dumps(json.loads(columns["facts"].tobytes()) | content).encode()
    np.savez(path, **columns | {"facts": np.frombuffer(content, dtype=np.uint8)})
    with pytest.raises(DatasetError, match=rf"train.manifest.npz is damaged \(.*{reason}") as caught:
        open_beton(store / "train.beton")
    assert "\n" not in str(caught.value)


@pytest.mark.wrong("file")
@pytest.mark.parametrize(
    ("name", "change_column"),
    [
        ("targets", lambda column: column + 10),
        ("targets", lambda column: column[:-1]),
        ("targets", lambda column: column.astype(float)),
        ("name_offsets", lambda column: column[::-1].copy()),
        ("sizes", lambda column: column[None]),
    ],
)
def test_columns_of_another_form_are_one_error(store, name, change_column):
    path = store / "train.manifest.npz"
    with np.load(path) as arrays:
        columns = dict(arrays)
    np.savez(path, **columns | {name: change_column(columns[name])})
    with pytest.raises(DatasetError, match="is damaged"):
        open_beton(store / "train.beton")


def test_a_changed_name_in_the_manifest_shows_in_the_fingerprint(store):
    path = store / "train.manifest.npz"
    with np.load(path) as arrays:
        columns = dict(arrays)
    columns["name_bytes"][0] ^= 1
    np.savez(path, **columns)
    with pytest.raises(DatasetError, match="its fingerprint is"):
        open_beton(store / "train.beton")


@pytest.mark.wrong("file")
def test_another_dataset_is_refused(store):
    with pytest.raises(DatasetError, match="was made from digits, not imagefolder"):
        open_dataset("imagefolder", store, seed=0)


@pytest.mark.wrong("file")
@pytest.mark.parametrize("options", [{"seed": 1}, {"seed": 0, "val_fraction": 0.5}])
def test_another_split_is_refused(store, options):
    with pytest.raises(DatasetError, match=r"split by val_fraction 0.2 and seed 0, but the run splits by .*--seed"):
        open_dataset("digits", store, **options)
