"""Which DALI is installed, read from its package's metadata, and whether it decodes on the GPU that torch uses."""

import pytest
import torch
from loader_libraries import require_library

from rlpheads.loaders.adapters.libraries import check_dali_on_gpu, dali_builds
from rlpheads.loaders.contract.errors import DatasetError


def installed(folder, *packages):
    for package in packages:
        metadata = folder / f"{package.replace('-', '_')}-1.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.4\nName: {package}\nVersion: 1.0\n")
    return [str(folder)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ([], {}),
        (["nvidia-dali-cuda120", "nvidia-dali-tf-plugin-cuda130", "torch"], {"nvidia-dali-cuda120": "12"}),
        (["nvidia-dali-nightly-cuda130"], {"nvidia-dali-nightly-cuda130": "13"}),
        (["nvidia_dali_cuda110"], {"nvidia_dali_cuda110": "11"}),
    ],
    ids=str,
)
def test_builds_are_known_by_their_packages(tmp_path, packages, expected):
    assert dali_builds(installed(tmp_path, *packages)) == expected


@pytest.mark.long
@pytest.mark.skipif(torch.version.cuda is None, reason="torch is not built for CUDA here")
def test_what_is_installed_here_fits_its_torch():
    require_library("dali")
    assert dali_builds()
    check_dali_on_gpu(torch.version.cuda, dali_builds())


@pytest.mark.wrong("environment")
@pytest.mark.parametrize(
    ("cuda", "packages", "expected"),
    [
        (
            "13.0",
            ["nvidia-dali-cuda120"],
            "DALI is installed as nvidia-dali-cuda120, and PyTorch is built for CUDA 13.0: run `pip uninstall "
            "nvidia-dali-cuda120`, then `pip install nvidia-dali-cuda130`; or decode on the CPU with --data.dali.decode cpu",
        ),
        ("12.6", ["nvidia-dali-cuda130"], "then `pip install nvidia-dali-cuda120`; or decode on the CPU"),
        (
            "13.0",
            ["nvidia-dali-cuda120", "nvidia-dali-cuda130"],
            "run `pip uninstall nvidia-dali-cuda120 nvidia-dali-cuda130`",
        ),
    ],
    ids=["12 for 13", "13 for 12", "both"],
)
def test_build_for_another_cuda_than_torchs(tmp_path, cuda, packages, expected):
    with pytest.raises(DatasetError) as caught:
        check_dali_on_gpu(cuda, dali_builds(installed(tmp_path, *packages)))
    assert expected in str(caught.value)


def test_a_dali_without_a_package_is_accepted():
    check_dali_on_gpu("13.0", {})
