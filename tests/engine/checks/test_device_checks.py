"""CUDA that cannot be used, or not by these ranks, or not in this precision: told before anything starts.

Real processes meet what is real here: no driver at all, and drivers that a stub of a library answers for. What only a
GPU could say is handed to the functions that judge it.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from many_starts import Start, start_each

from rlpheads.engine.checks.device import (
    Device,
    capability_errors,
    device_count_errors,
    explain_cuda_error,
    why_no_cuda,
)
from rlpheads.engine.config.errors import ConfigError, RankError

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[3]
INSTALL = "install the PyTorch for your driver (nvidia-smi shows its CUDA version; see pytorch.org)"
BUILT_FOR = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
TURING, HOPPER = Device("Tesla T4", (7, 5)), Device("NVIDIA H100 80GB HBM3", (9, 0))

needs_cuda_build = pytest.mark.skipif(
    torch.version.cuda is None or torch.cuda.is_available(), reason="needs a CUDA build of torch without a GPU"
)

STUB = """
#include <stdlib.h>
#include <string.h>
static int number(const char *name) { return atoi(getenv(name)); }
int cuDriverGetVersion(int *version) { *version = number("STUB_VERSION"); return 0; }
int cuInit(unsigned flags) { return number("STUB_INIT"); }
static int missing(void) { return 100; }
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long flags, int *status) {
    if (status) *status = 0;
    *function = !strcmp(name, "cuDriverGetVersion") ? (void *)cuDriverGetVersion
        : !strcmp(name, "cuInit") ? (void *)cuInit
        : !strcmp(name, "cuGetProcAddress") ? (void *)cuGetProcAddress_v2 : (void *)missing;
    return 0;
}
"""
"""A driver library that says which CUDA it has and how starting it ends: 0, or the number of a CUDA error."""


CASES = {
    "old driver": ("11040", "0", None, f"the NVIDIA driver goes up to 11.4: update the driver, or {INSTALL}"),
    "older driver": ("9020", "0", None, f"the NVIDIA driver goes up to 9.2: update the driver, or {INSTALL}"),
    "no GPU": (
        "99000",
        "100",
        None,
        "but the NVIDIA driver lists no GPU: nvidia-smi -L must (a job of a cluster has to",
    ),
    "none visible": (
        "99000",
        "100",
        "",
        "but CUDA_VISIBLE_DEVICES is '', which hides every GPU: unset it, or name some",
    ),
    "-1 visible": ("99000", "100", "-1", "but CUDA_VISIBLE_DEVICES is '-1', which hides every GPU: unset it, or name"),
    "a word": ("99000", "100", "gpu0", "but CUDA_VISIBLE_DEVICES is 'gpu0', which hides every GPU: unset it, or name"),
    "other kernel module": (
        "99000",
        "803",
        None,
        "cuda driver combination): `nvidia-smi` and `rlpheads env` show what",
    ),
    "unknown error": ("99000", "999", None, "but CUDA does not start (CUDA unknown error"),
}
"""What the stub says of its version and its start, what CUDA_VISIBLE_DEVICES is, and what a run then says."""


def told_by_each(folder: Path, cases: dict[str, dict[str, str]], **variables: str) -> dict[str, str]:
    """Start a run on CUDA under the variables of each case, and return the one line with which it ends."""
    argv = ["--config", str(ROOT / "configs" / "digits_vit.yaml"), "--device", "cuda", "--run.dir", "runs"]
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | variables
    ends = start_each(folder, {name: Start(argv, changes) for name, changes in cases.items()}, env)
    assert {end.code for end in ends.values()} == {2}, ends
    assert not (folder / "runs").exists(), "nothing is made"
    assert all(end.output == f"{end.complaint}\n" for end in ends.values()), "one line, and nothing else"
    return {name: end.complaint for name, end in ends.items()}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, str]:
    """What runs say whose driver is the stub, by case."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "stub.c").write_text(STUB)
    compiler = ["cc", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(folder / "stub.c")]
    try:
        subprocess.run(compiler, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no C compiler here, of which the stub of a driver is made")
    cases = {
        name: {"STUB_VERSION": version, "STUB_INIT": start}
        | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
        for name, (version, start, visible, _) in CASES.items()
    }
    return told_by_each(folder, cases, LD_LIBRARY_PATH=str(folder))


@needs_cuda_build
@pytest.mark.wrong("environment")
def test_cuda_build_without_a_driver(tmp_path):
    assert told_by_each(tmp_path, {"no driver": {}})["no driver"] == (
        "error: device: got cuda, but there is no NVIDIA driver: nvidia-smi must list a GPU (on a machine that has one, "
        "install its driver; start a container with --gpus all); allowed here: cpu or auto"
    )


@needs_cuda_build
@pytest.mark.wrong("environment")
@pytest.mark.parametrize("case", CASES)
def test_driver_that_is_of_no_use(told, case):
    assert told[case].startswith("error: device: got cuda, but ")
    assert CASES[case][-1] in told[case]
    assert told[case].endswith("; allowed here: cpu or auto")


@pytest.mark.wrong("environment")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_build_for_the_cpu_alone(monkeypatch):
    """Another build of torch cannot be installed beside this one: only its answer is put in place."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert why_no_cuda() == f"PyTorch {torch.__version__} is built for the CPU alone: {INSTALL}"


def test_words_that_nobody_foresaw_are_passed_on():
    assert explain_cuda_error("Something new.\nat line 3", None) == (
        "CUDA does not start (Something new): `nvidia-smi` and `rlpheads env` show what is there"
    )


@pytest.mark.wrong("environment")
@pytest.mark.parametrize(
    ("num_devices", "num_ranks", "rank", "visible", "kind", "expected"),
    [
        (1, 2, 0, None, ConfigError, "got 2 ranks on this node, where they see 1 CUDA device(s); "),
        (
            1,
            2,
            1,
            "3",
            ConfigError,
            "got 2 ranks on this node, where they see 1 CUDA device(s) (CUDA_VISIBLE_DEVICES is ",
        ),
        (4, 8, 0, "0,1,2,3", ConfigError, "allowed: --nproc-per-node 4 or less, or --device cpu"),
        (1, 1, 3, "3", RankError, "got LOCAL_RANK 3, which sees 1 CUDA device(s) (CUDA_VISIBLE_DEVICES is '3'); "),
        (2, 1, 2, None, RankError, "allowed: a number below 2, or --device cpu. Show all of a node's GPUs to each"),
    ],
)
def test_ranks_without_a_device_of_their_own(num_devices, num_ranks, rank, visible, kind, expected):
    (error,) = device_count_errors(num_devices, num_ranks, rank, visible)
    assert type(error) is kind
    assert str(error).startswith("device: got ")
    assert expected in str(error)


@pytest.mark.parametrize(("num_devices", "num_ranks", "rank"), [(1, 1, 0), (8, 8, 7), (8, 2, 1), (4, 1, 3)])
def test_ranks_with_devices_of_their_own(num_devices, num_ranks, rank):
    assert not list(device_count_errors(num_devices, num_ranks, rank, None))


@pytest.mark.wrong("environment")
@pytest.mark.parametrize(
    ("device", "built_for"),
    [
        (Device("Tesla V100-SXM2-16GB", (7, 0)), BUILT_FOR),
        (Device("NVIDIA GeForce GTX 1080", (6, 1)), BUILT_FOR),
        (Device("NVIDIA of tomorrow", (13, 0)), BUILT_FOR),
        (Device("NVIDIA A100-SXM4-80GB", (8, 0)), ["sm_86"]),
        (Device("NVIDIA A100-SXM4-80GB", (8, 0)), ["compute_90"]),
    ],
    ids=lambda value: value.name if isinstance(value, Device) else None,
)
def test_device_that_this_torch_has_no_code_for(device, built_for):
    (error,) = capability_errors([HOPPER, device] if built_for is BUILT_FOR else [device], built_for, "fp32")
    number = f"{device.capability[0]}.{device.capability[1]}"
    assert str(error) == (
        f"device: got {device.name}, of compute capability {number}, for which PyTorch {torch.__version__} has no code (it "
        f"has {', '.join(built_for)}); allowed: --device cpu, or a PyTorch that is built for it (see pytorch.org)"
    )


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 3), (12, 1)])
def test_device_that_this_torch_has_code_for(capability):
    assert not list(capability_errors([Device("a GPU", capability)], BUILT_FOR, "fp32"))
    assert not list(capability_errors([Device("a GPU", capability)], [], "fp32"))
    assert not list(capability_errors([Device("a GPU", capability)], ["compute_75"], "fp16"))


@pytest.mark.wrong("environment")
def test_precision_that_one_of_the_devices_does_not_have():
    assert not list(capability_errors([HOPPER, HOPPER], BUILT_FOR, "bf16"))
    for precision in ("fp16", "fp32"):
        assert not list(capability_errors([HOPPER, TURING], BUILT_FOR, precision))
    (error,) = capability_errors([HOPPER, TURING], BUILT_FOR, "bf16")
    assert str(error) == (
        "precision: got 'bf16'; allowed: fp32 or fp16 on Tesla T4: bf16 needs compute capability 8.0, and it has 7.5"
    )
