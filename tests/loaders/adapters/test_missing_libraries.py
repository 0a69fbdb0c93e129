"""A loader that is asked for where its library is not installed: one message with the remedy, before anything else."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import check_loader, make_loader

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)


def test_without_dali_the_build_for_torchs_cuda_is_named(monkeypatch, digits):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    order = Order(digits[0].manifest.num_samples, 8)
    with pytest.raises(DatasetError, match=r"^the dali loader needs NVIDIA DALI, .*pip install nvidia-dali-cuda130"):
        make_loader("dali", digits[0], order, CropSpec(8), train=True)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(DatasetError, match=r"pip install nvidia-dali-cuda120.*--data\.loader torch"):
        check_loader("dali", digits[0])


def test_without_ffcv_the_packages_of_its_setup_are_named(digits):
    """Said before the lack of a store is, and no other packages than those that `make ffcv` would install."""
    with pytest.raises(
        DatasetError, match=r"^the ffcv loader needs FFCV, which is not installed: .*`make ffcv`"
    ) as told:
        check_loader("ffcv", digits[0])
    packages = re.search(r"apt-get install ([^`]+)`", str(told.value))[1]
    assert f"packages=({packages})" in (ROOT / "setup_ffcv.sh").read_text()


def test_without_either_torch_loads(digits):
    check_loader("torch", digits[0])
