"""CIFAR from files in the official layout: canonical order, the right pixels, and refusals that say what to do."""

import http.server
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
import torch
import torchvision.datasets
from cifar_files import CIFAR10_CLASSES, write_cifar

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.sources.datasets import count_classes, open_dataset


def test_cifar10_stands_in_canonical_order(tmp_path, monkeypatch):
    pixels = write_cifar("cifar10", tmp_path, monkeypatch)
    train, val = open_dataset("cifar10", tmp_path, seed=0)
    assert count_classes("cifar10", tmp_path) == len(train.manifest.classes)
    assert (train.manifest.num_samples, val.manifest.num_samples) == (100, 20)
    assert train.manifest.classes == tuple(CIFAR10_CLASSES)
    assert np.bincount(train.manifest.targets).tolist() == [10] * 10
    assert (np.diff(train.manifest.targets) >= 0).all()
    theirs = torchvision.datasets.CIFAR10(tmp_path, train=True)
    batches = np.concatenate([pixels[f"data_batch_{number}"] for number in range(1, 6)])
    for index in (0, 42, 99):
        prefix, label, row = train.manifest.name(index).split("/")
        assert prefix == "cifar10"
        assert theirs.classes[theirs.targets[int(row)]] == label
        image = train.read(index)
        assert image.dtype == torch.uint8
        np.testing.assert_array_equal(image.numpy(), batches[int(row)].reshape(3, 32, 32))


def test_cifar100_has_its_fine_classes(tmp_path, monkeypatch):
    write_cifar("cifar100", tmp_path, monkeypatch, rows=200)
    train, val = open_dataset("cifar100", tmp_path, seed=0)
    assert count_classes("cifar100", tmp_path) == len(train.manifest.classes)
    assert len(train.manifest.classes) == 100
    assert train.manifest.split == "train"
    assert val.manifest.split == "val"
    assert train.manifest.fingerprint != val.manifest.fingerprint


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    write_cifar("cifar10", tmp_path, monkeypatch)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="MD5 sums are not the official ones.*unpack cifar-10-python.tar.gz again"):
        open_dataset("cifar10", tmp_path, seed=0)


def test_missing_files_say_how_to_get_them(tmp_path):
    with pytest.raises(DatasetError, match="no folder cifar-100-python: point data.root .* or let it be fetched with"):
        open_dataset("cifar100", tmp_path, seed=0)


def test_cifar_is_downloaded_once(tmp_path, monkeypatch):
    """From a server on this machine; four readers at once, as four ranks would be."""
    write_cifar("cifar10", tmp_path / "made", monkeypatch)
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(self.command)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    reader = torchvision.datasets.CIFAR10
    monkeypatch.setattr(reader, "url", f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz")
    monkeypatch.setattr(reader, "tgz_md5", None)
    found = []

    def fetch():
        found.append(open_dataset("cifar10", tmp_path / "new" / "root", seed=0, download=True)[0].manifest.fingerprint)

    readers = [threading.Thread(target=fetch) for _ in range(4)]
    for each in readers:
        each.start()
    for each in readers:
        each.join()
    server.shutdown()
    server.server_close()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert requests.count("GET") == 2  # torchvision asks for redirections first


def test_a_failed_fetch_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/none.tar.gz")
    with pytest.raises(DatasetError, match="cannot be fetched into"):
        open_dataset("cifar10", tmp_path, seed=0, download=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written to"):
        open_dataset("cifar10", tmp_path / "file" / "root", seed=0, download=True)


def test_its_own_test_split_is_used(tmp_path):
    with pytest.raises(DatasetError, match="cifar10 has held-out images of its own: set val_fraction to null"):
        open_dataset("cifar10", tmp_path, val_fraction=0.1, seed=0)
