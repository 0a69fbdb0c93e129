"""A tiny run, in this process: a two-block ViT on the digits."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_runs import small_config

from rlpheads.engine.config.data import DataConfig
from rlpheads.engine.config.learning import HeadsConfig, ModelConfig, OptimConfig
from rlpheads.engine.config.run import RunConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed import launch
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.model.plan import plan_model
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.resume import ResumePoint
from rlpheads.engine.runs.run_manifest import Position
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training import job
from rlpheads.engine.training.training import Training
from rlpheads.engine.training.wiring import build_training


@pytest.fixture(scope="module")
def launched() -> Iterator[Launch]:
    with launch.start("cpu") as started:
        yield started


@pytest.fixture
def tiny(tmp_path: Path) -> Config:
    """Two blocks, two taps, two draws of five labels."""
    return Config(
        epochs=2,
        batch_size=32,
        log_every=5,
        device="cpu",
        run=RunConfig(dir=str(tmp_path), name="tiny"),
        data=DataConfig(workers=0, image_size=8, hflip=0.0, crop_scale=(0.8, 1.0), eval_crop_fraction=1.0),
        model=ModelConfig(
            name="vit_tiny_patch16_224",
            args={"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "drop_rate": 0.1},
        ),
        heads=HeadsConfig(labels=5, draws=2, optim=OptimConfig(lr=1e-2, weight_decay=0.0)),
    )


@pytest.fixture
def build(launched: Launch, tmp_path: Path) -> Callable[[Config], Training]:
    def built(config: Config, **changes: Any) -> Training:
        config = replace(config, **changes)
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir(exist_ok=True)
        sources = open_sources(config)
        plan = plan_model(config, len(sources.train.manifest.classes))
        return build_training(config, plan, sources, folder, launched)

    return built


@pytest.fixture
def resumed(build: Callable[[Config], Training]) -> Callable[[Training, int], Training]:
    """Saves a training whose epoch has gone so many steps, and resumes it in another one."""

    def again(training: Training, num_steps: int) -> Training:
        training.move_to(Position(0, num_steps * training.run.config.batch_size))
        training.save()
        training.saver.wait()
        (saved,) = training.run.folder.checkpoints.iterdir()
        second = build(training.run.config)
        second.resume(ResumePoint(saved, training.position, 0.0))
        return second

    return again


@pytest.fixture
def spoiled(tiny, tmp_path):
    """24 training and 8 held-out images, of which train/a/03 and val/b/01 are no images: indices 3 and 5."""
    root = tmp_path / "images"
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number:02d}.png")
    (root / "train" / "a" / "03.png").write_bytes(b"damaged")
    (root / "val" / "b" / "01.png").write_bytes(b"")
    data = replace(tiny.data, dataset="imagefolder", root=str(root), on_error="skip")
    return replace(tiny, data=data, batch_size=8, log_every=1)


@pytest.fixture(scope="session")
def detached_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 7 epochs with λ = 0, which keeps the ends of epochs 5 and 6."""
    config = small_config(tmp_path_factory.mktemp("runs"), "detached", epochs=7)
    assert job.run(config) == 0
    return Path(config.run.dir) / config.run.name
