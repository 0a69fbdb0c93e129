"""FFCV where something is wrong: every image is the right one or refused by name, and nothing waits for ever."""

import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from image_corpus import CorpusFile, Outcome, write_corpus
from loader_libraries import require_library
from PIL import Image

from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import DatasetError, ImageReadError, LoaderError
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.beton import JPG, BetonSource, open_beton
from rlpheads.loaders.sources.canary_source import CanarySpec, insert_canaries
from rlpheads.loaders.sources.datasets import ImageSource, open_dataset
from rlpheads.loaders.store.image_encoding import Encoding
from rlpheads.loaders.store.write_ffcv import Job, write_beton

CROP = CropSpec(32)


@pytest.fixture(scope="module", autouse=True)
def _ffcv():
    require_library("ffcv")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[ImageSource, dict[int, CorpusFile]]:
    root = tmp_path_factory.mktemp("corpus")
    files = write_corpus(root)
    return open_dataset("imagefolder", root, seed=0)[0], files


def store_of(source: ImageSource, folder: Path, encoding: Encoding, **options) -> BetonSource:
    job = Job(source, folder / "train.beton", "imagefolder", None, encoding, **options)
    write_beton(job)
    return open_beton(job.path)


def load(source: ImageSource, batch_size: int, *, kind: str = "ffcv", train: bool = False, **options):
    order = Order(source.manifest.num_samples, batch_size, shuffle=False, partial="pad")
    return make_loader(kind, source, order, CROP, train=train, options=LoaderOptions(**options))


def rows_by_index(batches: list[Batch]) -> dict[int, torch.Tensor]:
    pairs = [pair for batch in batches for pair in zip(batch.index.tolist(), batch.images, strict=True)]
    return {index: image for index, image in pairs if index >= 0}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize(
    ("encoding", "tolerance"), [(Encoding("raw", short_side=300), 0.5), (Encoding("jpg"), 8)], ids=str
)
def test_every_file_of_the_corpus_comes_out_as_through_torch(corpus, tmp_path, encoding, tolerance):
    """What torch refuses is refused, in the same words; what it reads is the same picture (JPEG loses some of a GIF)."""
    source, files = corpus
    store = store_of(source, tmp_path, encoding, on_error="skip")
    for train in (True, False):
        ours = list(load(store, 8, train=train, on_error="skip", num_workers=2))
        theirs = list(load(source, 8, kind="torch", train=train, on_error="skip"))
        skipped = [{error.index: error.reason for batch in each for error in batch.skipped} for each in (ours, theirs)]
        assert skipped[0] == skipped[1]
        assert {index for index, file in files.items() if file.outcome is Outcome.REFUSED} <= skipped[0].keys()
        rows, expected = rows_by_index(ours), rows_by_index(theirs)
        assert rows.keys() == expected.keys()
        for index in rows:
            sizes = [each.read(index).shape for each in (store, source)]
            if sizes[0] == sizes[1]:  # another size has another crop
                difference = (rows[index].float() - expected[index].float()).abs().mean()
                assert difference < tolerance, files[index].name if index in files else index


def test_a_store_with_unreadable_images_is_refused_unless_they_are_skipped(corpus, tmp_path):
    source, _ = corpus
    store = store_of(source, tmp_path, Encoding("jpg"), on_error="skip")
    with pytest.raises(DatasetError, match="are known to be unreadable"):
        load(store, 8)


@pytest.fixture
def damaged(tmp_path) -> BetonSource:
    """A store of 24 large JPEG files, in which one sample's data are overwritten behind the header's back."""
    for split in ("train", "val"):
        for number in range(24):
            folder = tmp_path / "tree" / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    source, _ = open_dataset("imagefolder", tmp_path / "tree", seed=0)
    store = store_of(source, tmp_path, Encoding("jpg"))
    assert set(store.samples["f0"]["mode"].tolist()) == {JPG}
    with store.path.open("r+b") as file:
        file.seek(int(store.samples["f0"]["data_ptr"][13]))
        file.write(bytes(int(store.num_bytes[13])))
    return open_beton(store.path)


def test_damaged_data_are_an_error_by_name_and_never_the_picture_before(damaged):
    """FFCV itself takes no notice and shows what its memory held."""
    loader = load(damaged, 4, num_workers=2)
    batches = iter(loader)
    assert [next(batches).index.tolist() for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(
        ImageReadError, match=r"image 13 \(.*train.beton, b/.*\.jpg\) cannot be read: its JPEG data"
    ) as caught:
        next(batches)
    assert caught.value.index == 13
    assert loader.state_dict() == {"epoch": 0, "consumed": 12}
    assert not [thread for thread in threading.enumerate() if type(thread).__name__ == "EpochReader"]


@pytest.mark.parametrize("kind", ["torch", "ffcv", "dali"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_copy_of_a_damaged_image_is_named_alike_by_every_loader(damaged, kind, on_error):
    """By its own index, which the ledger has a row for, and the path of the image that it is a copy of."""
    require_library(kind)
    source = insert_canaries(damaged, CanarySpec(repeated=24, repeats=(2,)), seed=0)
    loader = load(source, 12, kind=kind, on_error=on_error)
    loader.set_epoch(0, consumed=24)  # behind the originals
    if on_error == "raise":
        with pytest.raises(ImageReadError) as caught:
            list(loader)
        error = caught.value
    else:
        (error,) = [error for batch in loader for error in batch.skipped]
    assert error.index == 24 + source.copied.tolist().index(13)
    assert error.path == f"{damaged.path}, {damaged.manifest.name(13)}"


def test_damaged_data_are_skipped_when_asked(damaged):
    batches = list(load(damaged, 4, num_workers=2, on_error="skip"))
    assert [error.index for batch in batches for error in batch.skipped] == [13]
    assert batches[3].index.tolist() == [12, -1, 14, 15]
    assert not batches[3].images[1].any()
    assert len(rows_by_index(batches)) == 23


@pytest.mark.parametrize(("height", "width"), [(39, 50), (41, 50), (40, 49), (40, 51)])
def test_a_jpeg_of_another_size_is_an_error_and_not_filled_up_with_the_picture_before(damaged, height, width):
    """As many blocks, so that FFCV's decoder has nothing to complain of."""
    data = damaged.encoded(5)
    at = int(damaged.samples["f0"]["data_ptr"][5]) + data.index(b"\xff\xc0\x00\x11\x08") + 5
    with damaged.path.open("r+b") as file:
        file.seek(at)
        assert file.read(4) == (40).to_bytes(2) + (50).to_bytes(2)
        file.seek(at)
        file.write(height.to_bytes(2) + width.to_bytes(2))
    batches = list(load(damaged, 4, on_error="skip"))
    assert [error.index for batch in batches for error in batch.skipped] == [5, 13]


class Doomed:
    """CropBoxes that cannot be drawn any more from the third batch on."""

    def __init__(self, loader, monkeypatch, error: type[BaseException]) -> None:
        self._batches, self._error = loader._boxes.batches, error
        monkeypatch.setattr(loader._boxes, "batches", self.batches)

    def batches(self, *asked):
        yield from islice(self._batches(*asked), 2)
        raise self._error("the thread is hit")


@pytest.fixture
def noise_store(tmp_path) -> BetonSource:
    for split in ("train", "val"):
        for number in range(16):
            folder = tmp_path / "tree" / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (number, number, number)).save(folder / f"{number}.png")
    return store_of(open_dataset("imagefolder", tmp_path / "tree", seed=0)[0], tmp_path, Encoding("raw"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [MemoryError, SystemExit])
def test_what_fails_in_the_thread_ends_the_epoch(noise_store, monkeypatch, error):
    """FFCV's own thread would end in silence, and the training wait for ever."""
    loader = load(noise_store, 4, prefetch=1)
    Doomed(loader, monkeypatch, error)
    batches = iter(loader)
    assert [next(batches).index[0].item() for _ in range(2)] == [0, 4]
    with pytest.raises(
        LoaderError, match=rf"the thread that reads .*train.beton failed: {error.__name__}: the thread is hit"
    ):
        next(batches)
    assert loader.state_dict()["consumed"] == 8


@pytest.mark.timeout(60)
def test_a_thread_that_ends_without_an_error_is_noticed(noise_store, monkeypatch):
    from rlpheads.loaders.adapters.ffcv_pipeline import EpochReader

    monkeypatch.setattr(EpochReader, "run", lambda _: None)
    with pytest.raises(LoaderError, match="ended before its epoch did"):
        next(iter(load(noise_store, 4)))


def test_samples_at_the_wrong_place_of_the_store_are_noticed(noise_store, monkeypatch):
    loader = load(noise_store, 4)
    metadata = loader._pipeline.reader.metadata.copy()
    metadata["f2"][6] = 7
    metadata.flags.writeable = False  # as a file's are: for others numba would compile everything once more
    monkeypatch.setattr(loader._pipeline.reader, "metadata", metadata)
    with pytest.raises(LoaderError, match=r"has samples \[4, 5, 7, 7\] where \[4, 5, 6, 7\] should be"):
        list(loader)


def test_opening_a_store_leaves_numbas_byte_arrays_writable(noise_store):
    """FFCV makes numba's type of an array of bytes read-only; what is compiled later then fails, here and elsewhere."""
    import numba  # comes with FFCV

    array_of_bytes = numba.uint8[::1]
    load(noise_store, 4)

    @numba.njit(numba.void(array_of_bytes))
    def write(bytes_N):
        bytes_N[0] = 7

    written_N = np.zeros(1, np.uint8)
    write(written_N)
    assert written_N.tolist() == [7]


@pytest.mark.timeout(60)
def test_an_interrupted_iteration_leaves_no_thread(noise_store):
    loader = load(noise_store, 2, prefetch=1)
    for batch in loader:
        assert batch.index.tolist() == [0, 1]
        break
    assert not [thread for thread in threading.enumerate() if type(thread).__name__ == "EpochReader"]
    loader.set_epoch(0)
    assert len(list(loader)) == 8


def test_a_store_that_vanishes_in_the_middle_of_an_epoch_is_read_to_its_end(noise_store):
    """The kernel keeps a mapped file."""
    loader = load(noise_store, 2, prefetch=1)
    batches = iter(loader)
    first = next(batches)
    noise_store.path.unlink()
    rows = rows_by_index([first, *batches])
    # 0.png, 2.png, ... are of the first class, and each is of its number's grey.
    assert [int(rows[index].float().mean()) for index in range(16)] == [
        int(noise_store.manifest.name(index)[2:-4]) for index in range(16)
    ]


def test_a_tree_is_refused_with_the_way_to_a_store(corpus):
    with pytest.raises(DatasetError, match="reads stores only.*rlpheads convert --data.root FOLDER --out STORE"):
        load(corpus[0], 8)


def test_torchs_threads_and_generators_stay_as_they_were(noise_store):
    torch.set_num_threads(2)
    try:
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        list(load(noise_store, 4, num_workers=1))
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]
    finally:
        torch.set_num_threads(1)
