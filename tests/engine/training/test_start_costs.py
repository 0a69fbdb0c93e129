"""What a process has loaded, and how it keeps memory, when the first step begins."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]

FIRST_STEP = """
import builtins, json, resource, sys

def fill():
    block = bytearray(40_000_000)

def tell(self, batch):
    loaded = {name.split(".")[0] for name in sys.modules}
    loaded |= {name for name in sys.modules if name.startswith("scipy.")}
    fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        fill()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print("first step:", json.dumps([sorted(loaded), faults]), flush=True)
    import torch._inductor.lowering
    print("compiler:", "loads", flush=True)
    raise KeyboardInterrupt

imported = builtins.__import__
def watching(name, *args, **kwargs):
    module = imported(name, *args, **kwargs)
    if name == "rlpheads.engine.training" and "rlpheads.engine.training.job" in sys.modules:
        builtins.__import__ = imported
        sys.modules["rlpheads.engine.training.training"].Training.train_on = tell
    return module
builtins.__import__ = watching

from rlpheads.engine import cli
sys.exit(cli.main())
"""
"""`rlpheads`, ended at its first step, of which it prints what is loaded and the page faults of 200 MB that were freed."""

LATER = {
    "matplotlib": "draws the figures of a finished run",
    "scipy.stats": "gives intervals at the end",
    "scipy.optimize": "is behind the capacity, which n/d above K needs not",
    "wandb": "is timm's option, and ours with log.wandb",
    "sklearn": "brings the digits, of which the file alone is read",
    "pandas": "is no part of a run",
}


@pytest.mark.long
def test_first_step_waits_for_nothing_that_comes_later(tmp_path):
    settings = ["--config", str(REPOSITORY / "configs" / "digits_vit.yaml"), "--run.dir", str(tmp_path)]
    command = [sys.executable, "-c", FIRST_STEP, "train", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("first step:"))
    loaded, faults = json.loads(line.removeprefix("first step:"))
    assert "timm" in loaded
    assert not LATER.keys() & set(loaded)
    if platform.libc_ver()[0] == "glibc":
        assert faults < 100, "memory is given back when it is freed"
    assert "compiler: loads" in done.stdout, "what a start hides of timm is missing when something is compiled"
