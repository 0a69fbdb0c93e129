"""What shows in a configuration before any process group or image is touched: ranges, contradictions, names, devices.

`rlpheads.engine.config.command_line` has already made sure of every field's type. The checks go from cheap to dear and stop at
the first problem, so that a slip in a number is told before timm is imported.
"""

from __future__ import annotations

import dataclasses
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlpheads.engine.checks.model import check_parts
from rlpheads.engine.config.data import DataConfig
from rlpheads.engine.config.errors import ConfigError, nearest, refusal, shown
from rlpheads.engine.config.learning import AverageConfig
from rlpheads.engine.config.run import LogConfig, RunConfig
from rlpheads.engine.config.schema import Config

_NAME_BYTES = 200  # a file system allows 255; the rest is for what is written beside the folder


@dataclasses.dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`; an open end does not belong."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}" if self.low > -math.inf else ""
        high = f"{'below' if self.open_high else 'at most'} {self.high:g}" if self.high < math.inf else ""
        return " and ".join(filter(None, (low, high)))


_FROM_0 = Interval(0)
_FROM_1 = Interval(1)
_ABOVE_0 = Interval(0, open_low=True)
_FRACTION = Interval(0, 1)
_BELOW_1 = Interval(0, 1, open_high=True)
_BETWEEN_0_AND_1 = Interval(0, 1, open_low=True, open_high=True)
_SHARE = Interval(0, 1, open_low=True)
_OPTIM = {"lr": _ABOVE_0, "base_batch_size": _FROM_1, "weight_decay": _FROM_0, "momentum": _BELOW_1}
_OPTIM |= {"layer_decay": _SHARE, "clip_norm": _ABOVE_0, "clip_value": _ABOVE_0, "clip_agc": _ABOVE_0}

RANGES: dict[str, Interval] = {
    "seed": Interval(0, 2**63 - 1),
    "epochs": _FROM_1,
    "max_steps": _FROM_1,
    "batch_size": Interval(2),
    "accumulate": _FROM_1,
    "log_every": _FROM_1,
    "runtime.profile.first": _FROM_0,
    "runtime.profile.steps": _FROM_1,
    "loss_scale.initial": _ABOVE_0,
    "loss_scale.growth_every": _FROM_1,
    "data.val_fraction": _BETWEEN_0_AND_1,
    "data.workers": _FROM_0,
    "data.dali.hardware_share": _FRACTION,
    "data.dali.largest_image": _FROM_0,
    "data.image_size": _FROM_1,
    "data.crop_scale": _SHARE,
    "data.crop_ratio": _ABOVE_0,
    "data.crop_padding": _FROM_1,
    "data.synthetic.train": Interval(2),
    "data.synthetic.val": Interval(2),
    "data.synthetic.classes": Interval(2),
    "data.subset.fraction": _SHARE,
    "data.subset.per_class": _FROM_1,
    "data.augment.rand_ops": _FROM_1,
    "data.augment.rand_magnitude": Interval(0, 30),
    "data.augment.rand_magnitude_std": _FROM_0,
    "data.augment.rand_probability": _FRACTION,
    "data.augment.color_jitter": _FROM_0,
    "data.augment.cutout": _FROM_0,
    "data.mix.mixup": _FROM_0,
    "data.mix.cutmix": _FROM_0,
    "data.mix.cutmix_minmax": _FRACTION,
    "data.mix.probability": _FRACTION,
    "data.mix.switch": _FRACTION,
    "data.mix.off_epoch": _FROM_0,
    "model.bce_threshold": _BELOW_1,
    "data.augment.erase": _FRACTION,
    "data.augment.erase_area": _SHARE,
    "data.augment.erase_ratio": _ABOVE_0,
    "data.hflip": _FRACTION,
    "data.eval_crop_fraction": _SHARE,
    "data.mean": _FRACTION,
    "data.std": _SHARE,
    "data.label_noise": _BELOW_1,
    "data.canaries.mislabelled": _FROM_0,
    "data.canaries.repeated": _FROM_0,
    "data.canaries.repeats": Interval(2),
    "data.canaries.near_duplicates": _FROM_0,
    "model.label_smoothing": _BELOW_1,
    "model.ema_decay": _BETWEEN_0_AND_1,
    "model.ema.every": _FROM_1,
    "early_stopping.patience": _FROM_1,
    "early_stopping.min_delta": _FROM_0,
    "model.ema.warmup_gamma": _ABOVE_0,
    "model.ema.warmup_power": _ABOVE_0,
    "heads.labels": Interval(2, 2**31 - 1),
    "heads.draws": _FROM_1,
    "heads.audit_draws": _FROM_0,
    "heads.hidden": _FROM_1,
    "heads.dropout": _BELOW_1,
    "heads.joint": _FROM_0,
    "regularizer.factor": _FROM_0,
    "regularizer.target": Interval(-1, 1),
    "regularizer.target_rate": _ABOVE_0,
    "schedule.warmup_epochs": _FROM_0,
    "schedule.min_lr_fraction": _FRACTION,
    "schedule.cooldown_epochs": _FROM_0,
    "schedule.cycles": _FROM_1,
    "schedule.cycle_decay": _SHARE,
    "schedule.decay_every": _ABOVE_0,
    "schedule.milestones": _ABOVE_0,
    "schedule.decay_rate": _SHARE,
    "eval.every": _FROM_1,
    "eval.clean_every": _FROM_0,
    "eval.batch_size": _FROM_1,
    "ledger.every": _FROM_0,
    "checkpoint.every": _FROM_1,
    "checkpoint.keep": _FROM_1,
    **{f"{part}.{name}": interval for part in ("optim", "heads.optim") for name, interval in _OPTIM.items()},
}
"""What every number of a `Config` may be, by dotted key; for a tuple or list, each of its numbers. null is not a
number, nor is a word where one is allowed (auto)."""

LEAST_AND_MOST = (
    *("data.crop_scale", "data.crop_ratio", "data.augment.erase_area", "data.augment.erase_ratio"),
    "data.mix.cutmix_minmax",
)
"""Pairs of numbers of which the first may not exceed the second; null is no pair."""


BLUR_REACH = 6
"""The blur of policy `three` reaches this many pixels to each side, and mirrors the image at its edges."""


def check_config(config: Config, world_size: int) -> None:
    """Make sure that `config` can be run on `world_size` ranks, as far as that shows without data and process groups.

    Builds the model without memory (on torch's meta device), so that its arguments, taps and image size are checked.

    Raises:
        ConfigError: the first problem found: the key, what was given, what is allowed.
    """
    _check_ranges(config)
    _check_batches(config, world_size)
    _check_schedule(config)
    _check_clipping(config)
    _check_run(config.run)
    _check_data(config.data)
    _check_class_loss(config)
    _check_terms(config)
    _check_model_settings(config)
    _check_target(config)
    _check_early_stopping(config)
    from rlpheads.engine.checks.device import check_device  # torch loads here, behind what needs none

    check_device(config)
    _check_dali(config)
    check_log(config.log)
    check_parts(config, world_size)


def _check_ranges(config: Config) -> None:
    for key, interval in RANGES.items():
        value = _value(config, key)
        several = isinstance(value, (tuple, list))
        numbers = value if several else (value,)
        if not all(number is None or isinstance(number, str) or number in interval for number in numbers):
            raise refusal(key, value, f"{'numbers' if several else 'a number'} {interval}")
    for key in LEAST_AND_MOST:
        pair = _value(config, key)
        if pair is not None and pair[0] > pair[1]:
            raise refusal(key, pair, f"the lesser number first: [{pair[1]}, {pair[0]}]")


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _check_batches(config: Config, world_size: int) -> None:
    step = 2 * world_size * config.accumulate
    if config.batch_size % step:
        product = f"2 x {world_size} (ranks) x {config.accumulate} (accumulate)"
        raise refusal("batch_size", config.batch_size, _multiple(config.batch_size, step, f"{step} = {product}"))
    eval_batch_size = config.eval.batch_size
    if eval_batch_size is not None and eval_batch_size % world_size:
        allowed = _multiple(eval_batch_size, world_size, f"{world_size}, the number of ranks")
        raise refusal("eval.batch_size", eval_batch_size, allowed)


def _multiple(number: int, step: int, described: str) -> str:
    below = number // step * step
    close = f"{below} or {below + step}" if below else f"{step}"
    return f"a multiple of {described} (nearest: {close})"


def _check_schedule(config: Config) -> None:
    schedule, epochs = config.schedule, config.epochs
    if schedule.warmup_epochs > epochs:
        raise refusal("schedule.warmup_epochs", schedule.warmup_epochs, f"at most the epochs, {epochs}")
    falls_once = schedule.name not in ("cosine", "linear")
    if falls_once and (schedule.cycles > 1 or schedule.cooldown_epochs > 0):
        key = "cycles" if schedule.cycles > 1 else "cooldown_epochs"
        raise refusal(f"schedule.{key}", getattr(schedule, key), f"{int(key == 'cycles')} with {schedule.name}")
    one_cycle = (epochs - schedule.cooldown_epochs) / schedule.cycles
    if one_cycle <= 0:
        raise refusal("schedule.cooldown_epochs", schedule.cooldown_epochs, f"less than the epochs, {epochs}")
    if schedule.warmup_epochs > one_cycle:
        raise refusal("schedule.warmup_epochs", schedule.warmup_epochs, f"at most one cycle, {one_cycle:g} epochs")
    milestones = schedule.milestones
    if (schedule.name == "multistep") != bool(milestones):
        raise refusal("schedule.milestones", milestones, "the epochs of the falls with multistep, and [] without it")
    if milestones != sorted(set(milestones)):
        raise refusal("schedule.milestones", milestones, "numbers that ascend")


def _check_clipping(config: Config) -> None:
    for key, optim in (("optim", config.optim), ("heads.optim", config.heads.optim)):
        given = [name for name in ("clip_norm", "clip_value", "clip_agc") if getattr(optim, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{key}: got {' and '.join(given)}; allowed: one way of clipping")
    if config.heads.optim.layer_decay is not None:
        raise refusal("heads.optim.layer_decay", config.heads.optim.layer_decay, "null: heads have no layers")


def _check_run(run: RunConfig) -> None:
    if not run.name:
        raise ConfigError("run.name: empty, and no --config file to take it from; allowed: the name of a folder")
    if run.name in (".", "..") or not run.name.isprintable() or "/" in run.name or "\\" in run.name:
        raise refusal("run.name", run.name, "the name of one folder, without / or \\ (run.dir says where it lies)")
    if len(run.name.encode()) > _NAME_BYTES:
        raise refusal("run.name", run.name, f"at most {_NAME_BYTES} bytes")
    if not run.dir or "\0" in run.dir:
        raise refusal("run.dir", run.dir, "the name of a folder; . is the current one")
    if run.resume == "must" and run.overwrite:
        raise ConfigError(
            "run.resume: got must, but run.overwrite deletes what would be resumed; allowed: one of the two"
        )


def _check_data(data: DataConfig) -> None:
    from rlpheads.loaders.sources.beton import is_store
    from rlpheads.loaders.sources.datasets import WITHOUT_ROOT

    if data.canaries.repeats == []:
        raise refusal("data.canaries.repeats", [], "a number at least 2, or a list of them")
    if data.subset.per_class is not None and data.subset.fraction != 1:
        raise refusal("data.subset.fraction", data.subset.fraction, "1 where data.subset.per_class says how many")
    _check_augment(data)
    is_cifar = data.dataset in ("cifar10", "cifar100")
    if data.download and not is_cifar:
        raise refusal("data.download", True, "false: only cifar10 and cifar100 can be fetched")
    if data.dataset in WITHOUT_ROOT:
        if data.root is not None and not is_store(Path(data.root)):
            raise refusal("data.root", data.root, f"null for {data.dataset}, which {WITHOUT_ROOT[data.dataset]}")
        return
    if data.root is None:
        fetched = "; with --data.download too it is fetched there" if is_cifar else ""
        allowed = f"the folder of the images, which {data.dataset} needs: --data.root FOLDER{fetched}"
        raise refusal("data.root", None, allowed)
    if not data.download and not Path(data.root).is_dir():
        raise refusal("data.root", data.root, "a folder that exists" + _nearest_folder(Path(data.root)))


def _check_augment(data: DataConfig) -> None:
    augment = data.augment
    if augment.color_jitter[3] > 0.5:
        raise refusal("data.augment.color_jitter", augment.color_jitter, "a hue, the last number, of at most 0.5")
    if augment.policy == "three" and data.image_size <= BLUR_REACH:
        allowed = f"another policy for images of {BLUR_REACH} pixels or less, which it cannot blur"
        raise refusal("data.augment.policy", augment.policy, allowed)
    if data.mix.cutmix_minmax is not None and data.mix.cutmix:
        raise refusal("data.mix.cutmix", data.mix.cutmix, "0 where data.mix.cutmix_minmax says how large the boxes are")


def _nearest_folder(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor does {path.parent})" if "\0" not in str(path) else ""
    match = nearest(path.name, (entry.name for entry in path.parent.iterdir() if entry.is_dir()))
    return f" (nearest: {path.parent / match})" if match else ""


def _check_model_settings(config: Config) -> None:
    model = config.model
    if model.pretrained and model.checkpoint is not None:
        raise ConfigError("model.checkpoint: got a file, and model.pretrained too; allowed: one of the two")
    for key in ("every", "warmup"):
        given = getattr(model.ema, key)
        if model.ema_decay is None and given != getattr(AverageConfig, key):
            allowed = f"{shown(getattr(AverageConfig, key))} while model.ema_decay is null: there is no average"
            raise refusal(f"model.ema.{key}", given, allowed)
    if not model.frozen:
        return
    if config.heads.taps == "none":
        raise ConfigError(
            "model.frozen: got true, and heads.taps is none; allowed: heads, or there is nothing to train"
        )
    for key, value in (("regularizer.factor", config.regularizer.factor), ("heads.joint", config.heads.joint)):
        if value > 0:
            raise refusal(key, value, "0 while model.frozen: nothing but the heads is trained")
    if model.ema_decay is not None:
        raise refusal("model.ema_decay", model.ema_decay, "null while model.frozen: the weights never move")


def _check_class_loss(config: Config) -> None:
    model = config.model
    if model.bce_threshold is None:
        return
    if model.loss != "bce":
        raise refusal("model.bce_threshold", model.bce_threshold, f"null while model.loss is {model.loss}")
    if model.label_smoothing:
        allowed = "null with model.label_smoothing, whose smoothed targets it would only make 0 or 1 again"
        raise refusal("model.bce_threshold", model.bce_threshold, allowed)


def _check_terms(config: Config) -> None:
    for key, value in (("regularizer.factor", config.regularizer.factor), ("heads.joint", config.heads.joint)):
        if value > 0 and config.heads.taps == "none":
            raise refusal(key, value, "0 without heads (heads.taps is none); heads at all blocks: heads.taps all")
    if config.heads.labels == "auto" and config.heads.taps == "none":
        raise refusal("heads.labels", "auto", "a number where no tap has a head (heads.taps is none)")
    for key, taps in (("heads.taps", config.heads.taps), ("regularizer.taps", config.regularizer.taps)):
        if taps == []:
            raise refusal(key, taps, "all or at least one place" + (", or none" if key == "heads.taps" else ""))


def _check_target(config: Config) -> None:
    target = config.regularizer.target
    if target is None:
        return
    if config.regularizer.factor == 0:
        raise refusal("regularizer.target", target, "null while regularizer.factor, where λ starts, is 0")
    if config.heads.audit_draws == 0:
        raise refusal(
            "regularizer.target", target, "null while heads.audit_draws is 0: audit heads measure the distance"
        )
    if config.eval.clean_every == 0:
        raise refusal("regularizer.target", target, "null while eval.clean_every is 0: λ is steered after a clean pass")


def _check_early_stopping(config: Config) -> None:
    settings = config.early_stopping
    if settings.metric.startswith("eval_ema") and config.model.ema_decay is None:
        allowed = "eval_top1 or eval_loss while model.ema_decay is null: there is no average"
        raise refusal("early_stopping.metric", settings.metric, allowed)


def _check_dali(config: Config) -> None:
    import torch

    from rlpheads.loaders.adapters.libraries import check_dali_on_gpu, dali_builds
    from rlpheads.loaders.contract.errors import DatasetError

    settings = config.data.dali
    if min(settings.largest_image) == 0 < max(settings.largest_image):
        raise refusal("data.dali.largest_image", settings.largest_image, "a height and a width, or [0, 0]")
    on_cuda = config.device != "cpu" and torch.cuda.is_available()
    if config.data.loader == "dali" and settings.decode == "gpu" and not on_cuda:
        raise refusal("data.dali.decode", "gpu", "auto or cpu where the model is not on a GPU")
    if config.data.loader == "dali" and settings.decode != "cpu" and on_cuda:
        try:
            check_dali_on_gpu(torch.version.cuda, dali_builds())
        except DatasetError as error:
            raise ConfigError(f"data.dali.decode: got {settings.decode}, but {error}") from error


def check_log(log: LogConfig) -> None:
    """Make sure that what `log` asks for is installed.

    Raises:
        ConfigError: W&B is asked for and is not there.
    """
    if log.wandb == "off":
        return
    spec = find_spec("wandb")
    if spec is None or spec.origin is None:  # no origin: a mere folder, such as the one in which W&B keeps its runs
        raise ConfigError(
            f"log.wandb: got {log.wandb!r}, which needs the package wandb, and it is not installed; allowed here: off. "
            "To have it: pip install 'rlpheads[wandb]'"
        )
