"""Settings drawn together, in runs of seconds: each ends whole, stopped or not, or is refused in one line."""

import csv
import math
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from real_runs import Finished, Runner, same_result
from started_run import send

from rlpheads.engine.cli import main

pytestmark = [pytest.mark.fuzz, pytest.mark.distributed, pytest.mark.timeout(600)]
SEED, CASES = 17, 60
STOPPED = 4
"""One in so many runs that end well is stopped and goes on, and its folder is read by the commands."""
Settings = Mapping[str, Any]


def each(key: str, *values: Any) -> list[Settings]:
    return [{key: value} for value in values]


VIT: Settings = {
    f"model.args.{key}": value for key, value in {"drop_path_rate": 0.1, "dynamic_img_size": "true"}.items()
}
RESNET: Settings = {
    **{f"model.args.{key}": "null" for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")},
    "model.name": "test_resnet",
    "model.sync_batchnorm": "true",
    "data.image_size": 32,
}
MODELS: Sequence[Settings] = [VIT, VIT, RESNET]
IMAGES: Sequence[Settings] = [
    {"data.dataset": "digits", "data.subset.fraction": 0.035},
    *(
        {"data.dataset": "synthetic", "data.val_fraction": "null", "data.synthetic.train": number}
        | {"data.synthetic.val": 11, "data.synthetic.classes": classes}
        for number, classes in ((48, 2), (50, 4), (41, 10))
    ),
]
FREE: Mapping[str, Sequence[Settings]] = {
    "policy": each("data.augment.policy", "rand", "trivial", "auto_imagenet", "auto_cifar10", "three"),
    "jitter": each("data.augment.color_jitter", "[0.4, 0.4, 0.4, 0.1]"),
    "erase": [{"data.augment.erase": 0.5, "data.augment.erase_fill": fill} for fill in ("noise", "color", "mean")],
    "cutout": each("data.augment.cutout", 4),
    "crop": [{"data.crop": "pad", "data.crop_padding": 2}],
    "interpolation": each("data.interpolation", "bicubic"),
    "mixing": [
        {"data.mix.mode": mode, "data.mix.mixup": mixup, **boxes}
        for mode in ("pair", "elem", "batch")
        for mixup in (0, 0.8)
        for boxes in ({"data.mix.cutmix": 1}, {"data.mix.cutmix_minmax": "[0.2, 0.8]", "data.mix.off_epoch": 1})
    ],
    "repeats": each("data.repeats", 2, 4),
    "partial": each("data.partial", "pad"),
    "errors": each("data.on_error", "skip"),
    "workers": each("data.workers", 1),
    "noise": each("data.label_noise", 0.2),
    "tail": each("data.subset.imbalance", 3),
    "canaries": [{"data.canaries.mislabelled": 3, "data.canaries.repeated": 2, "data.canaries.near_duplicates": 2}],
    "small images first": [
        {"data.progressive.first_size": 4, "data.progressive.multiple": 4, "data.progressive.end_epoch": 1}
    ],
    "average": [
        {"model.ema_decay": 0.9, **more} for more in ({}, {"model.ema.every": 2}, {"model.ema.warmup": "true"})
    ],
    "frozen": each("model.frozen", "true"),
    "class loss": [
        {"model.loss": "bce"},
        {"model.loss": "bce", "model.bce_threshold": 0},
        {"model.label_smoothing": 0.1},
    ],
    "labels": each("heads.labels", 2, 37, 300, "auto"),
    "draws": each("heads.draws", 2, 3),
    "audit heads": each("heads.audit_draws", 0, 1, 2),
    "balance": each("heads.balance", "balanced", "per_class"),
    "taps": each("heads.taps", "inside", "[-1]", "[0, 1]", "none"),
    "head": [{"heads.hidden": 16}, {"heads.norm": "false"}, {"heads.dropout": 0.3}],
    "joint": each("heads.joint", 0.1, 1),
    "shard": each("heads.shard", "class", "auto"),
    "update": each("heads.update", "separate", "fused"),
    "regularizer": [
        {"regularizer.kind": kind, "regularizer.factor": factor, **target}
        for kind in ("unlikelihood", "uniform", "reversal", "entropy")
        for factor in (0.1, 10)
        for target in ({}, {"regularizer.target": -0.1})
    ],
    "optimizer": each("optim.name", "sgd", "momentum", "lamb", "lion", "adafactor", "muon", "lookahead_adamw", "kron"),
    "heads' optimizer": each("heads.optim.name", "sgd", "momentum", "adam", "lion", "lars", "adan"),
    "clipping": each("optim.clip_norm", 0.1) + each("optim.clip_value", 0.1) + each("optim.clip_agc", 0.02),
    "heads' clipping": each("heads.optim.clip_norm", 0.1) + each("heads.optim.clip_agc", 0.02),
    "layer decay": each("optim.layer_decay", 0.65),
    "precision": [*each("precision", "bf16", "fp16"), {"precision": "fp16", "loss_scale.initial": 1e18}],
    "accumulate": each("accumulate", 2),
    "not finite": each("stability.on_nonfinite", "skip", "rollback"),
    "drift": each("stability.drift_every", 1),
    "schedule": [
        {"schedule.name": "linear", "schedule.cycles": 2},
        {"schedule.name": "multistep", "schedule.milestones": "[1]"},
    ],
    "stopping": [{"early_stopping.patience": 1, "early_stopping.metric": "eval_loss", "checkpoint.best": "true"}],
    "checkpoints": [*each("checkpoint.every_steps", 1, 2), {"checkpoint.every": 2, "checkpoint.background": "false"}],
    "evaluation": [*each("eval.every", 2), *each("eval.clean_every", 0, 2), *each("eval.batch_size", 6)],
    "refit": each("eval.refit", "on", "off"),
    "ledger": each("ledger.every", 0, 2),
    "images drawn": each("log.images", 2),
    "recomputed": each("runtime.activation_checkpointing", "true"),
    "memory format": each("runtime.channels_last", "true"),
    "deterministic": each("runtime.deterministic", "true"),
}
"""Settings that are drawn beside a network and images: for each name one of the alternatives."""


def draw(number: int) -> tuple[int, list[str]]:
    """Return the ranks and the flags of a case."""
    drawn = random.Random(f"{SEED}/{number}")
    settings: dict[str, Any] = {"batch_size": 16, "log.tensorboard": "false", "model.args.drop_rate": 0.1}
    settings |= drawn.choice(MODELS) | drawn.choice(IMAGES)
    for name in drawn.sample(sorted(FREE), drawn.randint(4, 10)):
        settings |= drawn.choice(FREE[name])
    return drawn.choice((1, 1, 2)), [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def numbers(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from numbers(part)


def assert_refused_in_one_line(finished: Finished) -> None:
    complaints = [line for line in finished.output.splitlines() if line.startswith("error: ")]
    assert len(complaints) == 1, finished.output
    assert finished.code == 2, finished.output
    assert not (finished.folder / "metrics.jsonl").exists()


def assert_whole(finished: Finished) -> None:
    assert finished.status["status"] == "done"
    epochs = finished.rows("epoch")
    for row in (*epochs, *finished.rows("step")):
        assert all(map(math.isfinite, numbers(row))), row
    with (finished.folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(epochs) > 0
    assert "nan" not in finished.output
    assert any(finished.ledgers)
    for table in finished.ledgers.values():
        assert table.column("index").to_pylist() == list(range(table.num_rows))


def assert_stopped_and_gone_on(
    runner: Runner, name: str, flags: Sequence[str], ranks: int, undisturbed: Finished
) -> None:
    stopped = f"{name}_stopped"
    started = runner.fork(stopped, *flags, ranks=ranks)
    runner.wait_for_step(stopped, 2, started)
    send(signal.SIGTERM, list(started.ranks().values()))
    assert runner.join(started, stopped).code in (0, 75)
    same_result(runner.run(stopped, *flags, ranks=ranks), undisturbed)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("number", range(CASES))
def test_settings_together_end_well_or_are_refused_in_one_line(runner: Runner, number: int) -> None:
    ranks, flags = draw(number)
    name = f"case_{number}"
    finished = runner.run(name, *flags, ranks=ranks)
    assert "Traceback" not in finished.output, (ranks, flags, finished.output)
    if finished.code != 0:
        assert_refused_in_one_line(finished)
        return
    assert_whole(finished)
    if number % STOPPED == 0:
        assert_stopped_and_gone_on(runner, name, flags, ranks, finished)
        for command in (["audit", "--draws", "4"], ["report"], ["evaluate"], ["samples", "--top", "3"], ["figures"]):
            assert main([command[0], str(finished.folder), *command[1:]]) in (0, 2)
