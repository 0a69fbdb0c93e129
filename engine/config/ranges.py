"""Numbers out of range: what every number of a configuration may be, by its key.

Nothing is imported that takes time: a slip in a number is reported at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from rlpheads.engine.config.errors import ConfigError, refusal
from rlpheads.engine.config.schema import Config, RandomSource

_MOST = 1_000_000_000
"""The largest number where nothing closer stands: enough to mean "never", and far from the ends of int64 and fp32."""


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; an open end does not belong."""

    low: float = -_MOST
    high: float = _MOST
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below

    def describe(self, *numbers: float) -> str:
        """Say which numbers these are; of the ends that stand for all ranges, only those that some of `numbers` is beyond."""
        ends = []
        if self.low != -_MOST or any(number < -_MOST for number in numbers):
            ends.append(f"{'above' if self.open_low else 'at least'} {self.low}")
        if self.high != _MOST or any(number > _MOST for number in numbers):
            ends.append(f"{'below' if self.open_high else 'at most'} {self.high}")
        return " and ".join(ends)


_MOST_IMAGES = 20_000_000  # each has a name in memory; ImageNet-21k has 14 million
_MOST_DRAWS = 10_000  # each has a head at every tap
_FROM_0 = Range(0)
_FROM_1 = Range(1)
_ABOVE_0 = Range(0, open_low=True)
_FRACTION = Range(0, 1)
_BELOW_1 = Range(0, 1, open_high=True)
_BETWEEN_0_AND_1 = Range(0, 1, open_low=True, open_high=True)
_SHARE = Range(0, 1, open_low=True)
_OPTIM = {"lr": _ABOVE_0, "base_batch_size": _FROM_1, "weight_decay": _FROM_0, "momentum": _BELOW_1}
_OPTIM |= {"layer_decay": _SHARE, "clip_norm": _ABOVE_0, "clip_value": _ABOVE_0, "clip_agc": _ABOVE_0}

RANGES: dict[str, Range] = {
    "seed": Range(0, 2**63 - 1),
    **{f"seeds.{source}": Range(0, 2**63 - 1) for source in get_args(RandomSource)},
    "epochs": _FROM_1,
    "max_steps": _FROM_1,
    "batch_size": Range(2),
    "accumulate": _FROM_1,
    "log_every": _FROM_1,
    "runtime.profile.first": _FROM_0,
    "runtime.profile.steps": _FROM_1,
    "loss_scale.initial": Range(0, 2**64, open_low=True),
    "loss_scale.growth_every": _FROM_1,
    "data.val_fraction": _BETWEEN_0_AND_1,
    "data.max_skipped": _FROM_0,
    "data.workers": _FROM_0,
    "data.dali.hardware_share": _FRACTION,
    "data.dali.largest_image": _FROM_0,
    "data.image_size": _FROM_1,
    "data.progressive.first_size": _FROM_1,
    "data.progressive.start_epoch": _FROM_0,
    "data.progressive.end_epoch": _FROM_1,
    "data.progressive.multiple": _FROM_1,
    "data.repeats": Range(1, 100),
    "data.crop_scale": _SHARE,
    "data.crop_ratio": _ABOVE_0,
    "data.crop_padding": _FROM_1,
    "data.synthetic.train": Range(2, _MOST_IMAGES),
    "data.synthetic.val": Range(2, _MOST_IMAGES),
    "data.synthetic.classes": Range(2),
    "data.subset.fraction": _SHARE,
    "data.subset.per_class": _FROM_1,
    "data.subset.imbalance": Range(1),
    "data.augment.rand_ops": Range(1, 100),
    "data.augment.rand_magnitude": Range(0, 30),
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
    "data.eval_crop_fraction": Range(0.05, 1),
    "data.mean": _FRACTION,
    "data.std": _SHARE,
    "data.label_noise": _BELOW_1,
    "data.canaries.mislabelled": _FROM_0,
    "data.canaries.repeated": _FROM_0,
    "data.canaries.repeats": Range(2, 100_000),
    "data.canaries.near_duplicates": _FROM_0,
    "model.label_smoothing": _BELOW_1,
    "model.ema_decay": _BETWEEN_0_AND_1,
    "model.ema.every": _FROM_1,
    "stability.max_skipped": _FROM_1,
    "stability.max_rollbacks": _FROM_0,
    "stability.spike_window": Range(2),
    "stability.spike_z": _ABOVE_0,
    "stability.drift_every": _FROM_0,
    "early_stopping.patience": _FROM_1,
    "early_stopping.min_delta": _FROM_0,
    "model.ema.warmup_gamma": _ABOVE_0,
    "model.ema.warmup_power": _ABOVE_0,
    "heads.labels": Range(2, 2**31 - 1),
    "heads.draws": Range(1, _MOST_DRAWS),
    "heads.audit_draws": Range(0, _MOST_DRAWS),
    "heads.hidden": _FROM_1,
    "heads.dropout": _BELOW_1,
    "heads.joint": _FROM_0,
    "regularizer.factor": _FROM_0,
    "regularizer.target": Range(-1, 1),
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
    "eval.image_size": _FROM_1,
    "ledger.every": _FROM_0,
    "log.images": Range(0, 1000),
    "checkpoint.every": _FROM_1,
    "checkpoint.keep": _FROM_1,
    "checkpoint.keep_epochs": _FROM_0,
    "checkpoint.every_steps": _FROM_1,
    "checkpoint.every_minutes": _ABOVE_0,
    "checkpoint.weights_every": _FROM_0,
    "checkpoint.max_failures": _FROM_1,
    "distributed.timeout": Range(1, 10**6),
    "distributed.start_timeout": Range(1, 10**6),
    **{f"{part}.{name}": allowed for part in ("optim", "heads.optim") for name, allowed in _OPTIM.items()},
}
"""What every number of a `Config` may be, by dotted key; for a tuple or list, each of its numbers. null is not a
number, nor is a word where one is allowed (auto)."""

LEAST_AND_MOST = (
    *("data.crop_scale", "data.crop_ratio", "data.augment.erase_area", "data.augment.erase_ratio"),
    "data.mix.cutmix_minmax",
)
"""Pairs of numbers of which the first may not exceed the second; null is no pair."""


def range_errors(config: Config) -> Iterator[ConfigError]:
    """Yield an error for every number out of its range, and for every pair whose first number is the greater."""
    for key, allowed in RANGES.items():
        value = _value(config, key)
        several = isinstance(value, (tuple, list))
        given = value if several else (value,)
        numbers = [number for number in given if not (number is None or isinstance(number, str))]
        if not all(number in allowed for number in numbers):
            yield refusal(key, value, f"{'numbers' if several else 'a number'} {allowed.describe(*numbers)}")
    for key in LEAST_AND_MOST:
        pair = _value(config, key)
        if pair is not None and pair[0] > pair[1]:
            yield refusal(key, pair, f"the smaller number first: [{pair[1]}, {pair[0]}]")


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
