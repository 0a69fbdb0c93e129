"""Settings of a run on few images that a tiny network can memorise."""

from pathlib import Path

from rlpheads.engine.config.data import DataConfig
from rlpheads.engine.config.learning import HeadsConfig, ModelConfig, OptimConfig, ScheduleConfig
from rlpheads.engine.config.run import CheckpointConfig, EvalConfig, LedgerConfig, RunConfig
from rlpheads.engine.config.schema import Config


def small_config(folder: Path, name: str, *, epochs: int, joint: float = 0.0, draws: int = 2) -> Config:
    """Return settings with 179 training images, which a tiny network can memorise."""
    return Config(
        epochs=epochs,
        batch_size=32,
        device="cpu",
        log_every=1000,
        run=RunConfig(dir=str(folder), name=name),
        data=DataConfig(
            workers=0,
            val_fraction=0.9,
            image_size=8,
            hflip=0.0,
            crop_scale=(1.0, 1.0),
            crop_ratio=(1.0, 1.0),
            eval_crop_fraction=1.0,
        ),
        model=ModelConfig(args={"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}),
        optim=OptimConfig(lr=3e-3),
        schedule=ScheduleConfig(name="constant"),
        heads=HeadsConfig(labels=5, draws=draws, joint=joint, optim=OptimConfig(lr=1e-2, weight_decay=0.0)),
        eval=EvalConfig(every=1000, clean_every=1000),
        ledger=LedgerConfig(every=0),
        checkpoint=CheckpointConfig(every=2, keep=2),
    )
