"""Where worker processes cannot hand their batches over: said in one line, where their parent would wait for ever."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlpheads.loaders.adapters import torch_batches
from rlpheads.loaders.adapters.torch_batches import _shared
from rlpheads.loaders.adapters.worker_surroundings import why_no_shared_memory, why_no_sockets
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import LoaderError
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader


@pytest.mark.wrong("environment")
@pytest.mark.parametrize(("length", "works"), [(75, True), (76, False), (131, False)])
def test_path_of_the_temporary_folder(monkeypatch, length, works):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * (length - 5))
    reason = why_no_sockets()
    assert (reason is None) == works
    assert works or str(reason).startswith(f"TMPDIR: got a folder whose path has {length} bytes (/tmp/xxx")


def test_limit_is_that_of_the_system():
    """A socket of multiprocessing's can be made in a folder of the longest path that is allowed, and in no longer one."""
    code = "from multiprocessing.connection import Listener; print(len(Listener(family='AF_UNIX').address))"
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        for length, expected in ((75, "107"), (76, "")):
            folder = Path(f"{base}/{'x' * (length - len(base) - 1)}")
            folder.mkdir()
            command = [sys.executable, "-c", code]
            env = {**os.environ, "TMPDIR": str(folder)}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            assert done.stdout.strip() == expected
            assert ("AF_UNIX path too long" in done.stderr) == (length > 75)


@pytest.mark.wrong("environment")
def test_loader_with_workers_refuses_a_long_path_and_one_without_does_not(monkeypatch, digits):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 126)
    order = Order(1437, 32, seed=0)
    assert make_loader("torch", digits[0], order, CropSpec(16), train=True)
    with pytest.raises(LoaderError, match=r"TMPDIR: got a folder whose path has 131 bytes"):
        make_loader("torch", digits[0], order, CropSpec(16), train=True, options=LoaderOptions(num_workers=1))


@pytest.mark.wrong("environment")
@pytest.mark.parametrize(
    ("num_rows", "side", "workers", "loaders", "free", "fits"),
    [
        (64, 8, 1, 1, 64 * 1024, False),
        (256, 224, 2, 1, 64 * 2**20, False),  # docker's 64 MB
        (32, 224, 2, 1, 64 * 2**20, True),
        (32, 224, 2, 4, 64 * 2**20, False),
    ],
)
def test_room_for_the_batches_under_way(monkeypatch, num_rows, side, workers, loaders, free, fits):
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096))
    reason = why_no_shared_memory(num_rows, side, LoaderOptions(num_workers=workers), loaders)
    assert (reason is None) == fits
    assert fits or str(reason).startswith(
        f"/dev/shm: {free:,} bytes are free, and the batches that loader workers make"
    )


def test_system_without_that_folder_is_left_alone(monkeypatch):
    def absent(_path):
        raise FileNotFoundError

    monkeypatch.setattr(os, "statvfs", absent)
    assert why_no_shared_memory(256, 224, LoaderOptions(num_workers=2), 1) is None


def test_every_column_of_a_workers_batch_is_shared_where_it_is_made(monkeypatch):
    """Moved later, in a thread of the worker's, a column that finds no room would be lost without a word."""
    column = torch.arange(4)
    assert not _shared(column.clone()).is_shared()
    monkeypatch.setattr(torch_batches, "get_worker_info", lambda: object())
    assert _shared(column.clone()).is_shared()


FULL = """
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.datasets import open_dataset
source = open_dataset("digits", seed=0)[0]
order = Order(source.manifest.num_samples, 64, seed=0)
for _ in make_loader("torch", source, order, CropSpec(64), train=True, options=LoaderOptions(num_workers=1)):
    pass
"""


@pytest.mark.long
@pytest.mark.wrong("environment")
def test_shared_memory_that_is_full_ends_the_iteration():
    command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=256k none /dev/shm && exec "$0" -c "$1"']
    try:
        done = subprocess.run(
            [*command, sys.executable, FULL], capture_output=True, text=True, timeout=240, check=False
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "Operation not permitted" in done.stderr:
        pytest.skip("no right to mount here")
    last = done.stderr.splitlines()[-1]
    assert "LoaderError: /dev/shm is full (unable to allocate shared memory" in last
    assert "--shm-size 8g" in last
