"""Everything that a first GPU is asked, as one command: `make bench-gpu`.

python benchmarks/bench_gpu.py                  # all parts, ten minutes at most
python benchmarks/bench_gpu.py --device cpu     # the same in miniature on a CPU: what runs, and what needs a GPU
python benchmarks/bench_gpu.py --only loss      # parts whose name begins so
RANKS=4 python benchmarks/bench_gpu.py          # several GPUs: replicated against sharded heads over NCCL

Each part is a command of its own with a share of the time, and what the parts before it left of theirs: it is ended then, and
no part is left without. What it lacks (a module, a tool, a GPU, several of them) is said by name. The shares are guesses until
a GPU has run them. rlpheads need not be installed, and a part needs nothing but torch and its `modules`. Writes a folder:
parts.json, table.md, a log of every part, and what the parts themselves write.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
PYTHON = sys.executable
TINY = "--data.synthetic.train 64 --data.synthetic.val 32 --data.synthetic.classes 5 --heads.labels 50 --batch_size 8"
"""For a CPU in place of 12 x 100,000 labels."""
SMALL_VIT = "--data.image_size 32 --model.name vit_tiny_patch16_224 --model.args.img_size 32 --data.workers 0"
QUIET = "--log.tensorboard false"
"""What a run need not write here, and need not have installed."""


@dataclass(frozen=True)
class Setting:
    """Where the parts run, and with how much."""

    device: str
    ranks: int
    folder: Path

    @property
    def is_gpu(self) -> bool:
        """Whether kernels of a GPU run."""
        return self.device == "cuda"


@dataclass(frozen=True)
class Part:
    """One command."""

    name: str
    words: Callable[[Setting], str]
    """What is run, by this Python unless another program is named."""
    modules: tuple[str, ...] = ()
    """Beside torch."""
    tools: tuple[str, ...] = ()
    gpu_only: str = ""
    """Why a CPU cannot run it."""
    share_s: int = 20
    """Of ten minutes on one GPU."""
    ranks: int = 1
    """GPUs that it needs."""


@dataclass(frozen=True)
class Outcome:
    """What came of a part."""

    part: str
    state: str
    """ok, failed, or why it was not run."""
    seconds: float
    last_lines: list[str]


LOSS = ("numpy", "rich")
IMAGES = ("numpy", "torchvision", "xxhash", "yaml")
ENGINE = (*IMAGES, "timm", "scipy", "pyarrow", "jsonargparse", "rich", "psutil", "matplotlib")
BENCHED = (*ENGINE, "sklearn", "tensorboard")
"""With the digits, and all that a start takes."""
TESTS = (*LOSS, "pytest", "pytest_timeout", "hypothesis")
IMAGE_TESTS = (*TESTS, *IMAGES, "pyarrow", "scipy")


def synthetic(*more: str, ranks: int = 1) -> Callable[[Setting], str]:
    """A ViT-B on made-up images with twelve heads of 100,000 labels; on a CPU a small one."""

    def words(setting: Setting) -> str:
        name = "_".join(more).replace("--", "").replace(" ", "_").replace(".", "_") or "plain"
        size = "--max_steps 30 --batch_size 64 --data.synthetic.train 2048 --data.synthetic.val 64"
        if not setting.is_gpu:
            size = f"--max_steps 2 {TINY} {SMALL_VIT}"
        processes = f"--nproc-per-node {setting.ranks}" if ranks > 1 else ""
        return (
            f"-m rlpheads.engine.cli train {processes} --config {ROOT}/configs/imagenet_vit_b.yaml --device {setting.device} "
            f"--data.dataset synthetic --epochs 1 {size} {QUIET} "
            f"--run.dir {setting.folder}/runs --run.name {name} {' '.join(more)}"
        )

    return words


def digits(epochs: int) -> Callable[[Setting], str]:
    """The digits; a second start goes on from the checkpoint of the first."""
    return lambda setting: (
        f"-m rlpheads.engine.cli train --config {ROOT}/configs/digits_vit.yaml --device {setting.device} --epochs {epochs} "
        f"--schedule.name constant --checkpoint.every 1 {QUIET} --run.dir {setting.folder}/runs --run.name digits"
    )


def loss(*shape: int) -> Callable[[Setting], str]:
    """The loss beside eager, compiled and the libraries that can be imported, at (B, D, K)."""

    def words(setting: Setting) -> str:
        rows, features, labels = shape if setting.is_gpu else (16, 32, 300)
        return (
            f"{HERE}/bench_random_label_loss.py --device {setting.device} --dtype bfloat16 --rows {rows} --labels {labels} "
            f"--features {features} --rounds 5 --single --out {setting.folder}/loss_{'_'.join(map(str, shape))}"
        )

    return words


def benchmark(script: str, on_gpu: str = "", on_cpu: str = "") -> Callable[[Setting], str]:
    """A benchmark of the engine: in a form for a GPU, or in miniature."""

    def words(setting: Setting) -> str:
        name = "_".join([script, *on_gpu.split()]).replace("--", "")
        more = on_gpu if setting.is_gpu else on_cpu
        return f"{HERE}/{script}.py --device {setting.device} --out {setting.folder}/{name} {more}"

    return words


def scaling(setting: Setting) -> str:
    """One rank beside all."""
    return benchmark("bench_scaling", *[f"--quick --ranks 1 {setting.ranks}"] * 2)(setting)


def tests(*which: str) -> Callable[[Setting], str]:
    """Tests that need a GPU: files of tests/gpu, names in them, and options of pytest."""
    named = " ".join(f"tests/gpu/{word}" if word.startswith("test_") else word for word in which)
    return lambda _: f"-m pytest -q -m gpu -p no:cacheprovider {named}"


def under(sanitizer: str) -> Callable[[Setting], str]:
    """The kernels' tests of every dtype below a program that watches their memory accesses."""
    watched = tests("test_gpu_random_label_loss.py", "-x", "-k", "every_dtype")
    return lambda setting: f"{sanitizer} {PYTHON} {watched(setting)}"


def arriving(kind: str) -> str:
    """The test of one loader into a GPU's memory."""
    return f"test_gpu_loaders.py::test_images_and_their_labels_arrive_and_nothing_waits[{kind}]"


NEEDS_GPU = "kernels of a GPU"
GPU_MEMORY = "a GPU's memory"
SHAPES = (128, 768, 10_000), (128, 768, 100_000), (1024, 768, 100_000), (2048, 2048, 102_400), (1024, 4096, 128_256)
"""(B, D, K); of the last two QuACK publishes times on an H200, 3.44 ms of the one before."""
PARTS = (
    Part("environment", lambda _: "-m rlpheads.engine.cli env", LOSS, share_s=10),
    Part("tests, loss", tests("test_gpu_random_label_loss.py"), TESTS, gpu_only=NEEDS_GPU, share_s=40),
    Part(
        "tests, head update",
        tests("test_gpu_triton_update.py"),
        (*TESTS, "timm", "torchvision", "yaml"),
        gpu_only=NEEDS_GPU,
        share_s=20,
    ),
    Part("tests, augmentation", tests("test_gpu_augment.py"), IMAGE_TESTS, gpu_only=NEEDS_GPU, share_s=10),
    *(Part(f"loss {shape}", loss(*shape), LOSS, share_s=12) for shape in SHAPES),
    Part("engine, digits", digits(1), (*ENGINE, "sklearn"), share_s=15),
    Part("engine, digits resumed", digits(2), (*ENGINE, "sklearn"), share_s=10),
    Part("engine, ViT-B, bf16", synthetic("--precision bf16"), ENGINE),
    Part("engine, ViT-B, fp16", synthetic("--precision fp16"), ENGINE, gpu_only="fp16 autocast of training"),
    Part("engine, ViT-B, profile", synthetic("--runtime.profile.first 1 --runtime.profile.steps 1"), ENGINE),
    Part("step", benchmark("bench_step", "--quick", "--small --rounds 1"), BENCHED, share_s=50),
    Part("augmentation", benchmark("bench_augment_graph", "--rounds 7", "--small --rounds 3"), BENCHED, share_s=25),
    Part("epoch end", benchmark("bench_epoch_end", "", "--quick"), BENCHED, share_s=10),
    Part("startup", benchmark("bench_startup", "--rounds 1", "--rounds 1"), BENCHED, share_s=30),
    Part("engine, replicated heads", synthetic("--heads.shard none", ranks=2), ENGINE, ranks=2),
    Part("engine, sharded heads", synthetic("--heads.shard class", ranks=2), ENGINE, ranks=2),
    Part("scaling by ranks", scaling, BENCHED, share_s=60, ranks=2),
    Part(
        "loaders",
        lambda setting: f"{HERE}/bench_loaders.py --quick --out {setting.folder}/loaders",
        (*IMAGES, "PIL", "pyarrow", "rich", "psutil", "scipy", "sklearn"),
        share_s=20,
    ),
    Part(
        "loaders, torch into GPU memory",
        tests("test_gpu_delivery.py", arriving("torch")),
        (*IMAGE_TESTS, "sklearn"),
        gpu_only=GPU_MEMORY,
        share_s=10,
    ),
    *(
        Part(
            f"loaders, {name} into GPU memory",
            tests(arriving(kind)),
            (*IMAGE_TESTS, module),
            gpu_only=GPU_MEMORY,
            share_s=10,
        )
        for name, kind, module in (("FFCV", "ffcv", "ffcv"), ("DALI cpu", "dali", "nvidia.dali"))
    ),
    Part(
        "loaders, DALI mixed",
        tests("test_gpu_dali.py"),
        (*IMAGE_TESTS, "sklearn", "nvidia.dali"),
        gpu_only="DALI on a GPU",
    ),
    Part(
        "compiled step, true",
        benchmark("bench_compile", "--mode true", "--mode true --small --rounds 3"),
        BENCHED,
        share_s=40,
    ),
    Part(
        "compiled step, reduce-overhead",
        benchmark("bench_compile", "--mode reduce-overhead"),
        BENCHED,
        gpu_only="CUDA graphs",
        share_s=40,
    ),
    *(
        Part(
            f"compute-sanitizer, {tool}",
            under(f"compute-sanitizer --tool {tool} --error-exitcode 9"),
            TESTS,
            ("compute-sanitizer",),
            gpu_only=NEEDS_GPU,
            share_s=25,
        )
        for tool in ("memcheck", "racecheck")
    ),
    Part(
        "Triton's sanitizer of concurrency",
        under("env TRITON_INSTRUMENTATION_MODE=consan"),
        (*TESTS, "triton"),
        gpu_only=NEEDS_GPU,
        share_s=15,
    ),
    Part(
        "compiled step, max-autotune",
        benchmark("bench_compile", "--mode max-autotune"),
        BENCHED,
        gpu_only="kernels of a GPU to choose among",
        share_s=45,
    ),
)


LEAST_S = 5.0
"""Seconds below which nothing is begun: importing torch takes as long."""


def is_importable(module: str) -> bool:
    """Whether a module can be found, which imports nothing but the packages that it lies in."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def obstacle(part: Part, setting: Setting) -> str | None:
    """Why a part cannot be run here."""
    if part.gpu_only and not setting.is_gpu:
        return f"needs a GPU: {part.gpu_only}"
    if part.ranks > setting.ranks:
        return f"needs {part.ranks} ranks: RANKS={part.ranks}"
    missing = [name for name in part.modules if not is_importable(name)]
    missing += [name for name in part.tools if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def shares(parts: Sequence[Part], setting: Setting, seconds: float) -> dict[str, float]:
    """Return by when each part has to be done, in seconds from the start: what cannot run leaves its share to all others."""
    given = [0 if obstacle(part, setting) else part.share_s for part in parts]
    ends = (seconds * end / max(sum(given), 1) for end in accumulate(given))
    return {part.name: end for part, end in zip(parts, ends, strict=True)}


def run(part: Part, setting: Setting, limit_s: float) -> Outcome:
    """Run a part to its end or its limit."""
    if reason := obstacle(part, setting) or ("no time left" if limit_s < LEAST_S else None):
        return Outcome(part.name, reason, 0.0, [])
    words = part.words(setting).split()
    command = words if words[0] in ("compute-sanitizer", "env") else [PYTHON, *words]
    log = setting.folder / f"{part.name.replace(' ', '_').replace(',', '')}.log"
    start = time.monotonic()
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT), str(HERE))))
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
            state = "ok" if code == 0 else f"failed: exit code {code}"
        except subprocess.TimeoutExpired:
            state = f"failed: not done after {limit_s:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)  # ranks and workers too
            process.wait()
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return Outcome(part.name, state, round(time.monotonic() - start, 1), lines[-8:])


def table(outcomes: list[Outcome], setting: Setting) -> str:
    """The outcomes in Markdown."""
    rows = [f"| {outcome.part} | {outcome.state} | {outcome.seconds:.0f} |" for outcome in outcomes]
    return "\n".join(
        [f"# {setting.device}, {setting.ranks} rank(s)", "", "| part | state | seconds |", "|---|---|---|", *rows, ""]
    )


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, help="of all parts together; default: 10 on a GPU, 30 on a CPU")
    parser.add_argument("--only", nargs="+", default=[""], help="parts whose names begin with one of these")
    parser.add_argument("--out", type=Path, help="folder of the results; default: benchmarks/results/gpu_DEVICE_DATE")
    options = parser.parse_args()
    name = torch.cuda.get_device_name().replace(" ", "-").lower() if options.device == "cuda" else "cpu"
    folder = (options.out or HERE / "results" / f"gpu_{name}_{date.today():%Y-%m-%d}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(options.device, int(os.environ.get("RANKS", "1" if options.device == "cuda" else "2")), folder)
    parts = [part for part in PARTS if part.name.startswith(tuple(options.only))]
    ends = shares(parts, setting, 60 * (options.minutes or (10 if setting.is_gpu else 30)))
    start, outcomes = time.monotonic(), list[Outcome]()
    for part in parts:
        outcomes.append(run(part, setting, start + ends[part.name] - time.monotonic()))
        print(f"{outcomes[-1].part}: {outcomes[-1].state} ({outcomes[-1].seconds:.0f} s)", flush=True)
        (folder / "parts.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
        (folder / "table.md").write_text(table(outcomes, setting))
    print(f"Everything is in {folder}")
    return int(any(outcome.state.startswith("failed") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
