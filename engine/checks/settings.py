"""Settings that contradict each other, and settings that a machine or a file system cannot keep.

`rlpheads.engine.config.command_line` has already made sure of every field's type, `rlpheads.engine.config.ranges` of every
number. Every check yields its errors, cheap checks first; torch is imported only where images are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from rlpheads.engine.config.data import PLUGIN_DATASET, DataConfig
from rlpheads.engine.config.errors import ConfigError, nearest, refusal, show_value
from rlpheads.engine.config.learning import AverageConfig, ModelConfig
from rlpheads.engine.config.run import LogConfig, RunConfig
from rlpheads.engine.config.schema import Config

_NAME_BYTES = 200  # a file system allows 255; the rest is for what is written beside the folder


MOST_COMPILED_SIZES = 6
"""Sizes of training images that are compiled: torch makes eight graphs of a function, and evaluation needs some."""
BLUR_REACH = 6
"""The blur of policy `three` reaches this many pixels to each side, and mirrors the image at its edges."""


def settings_errors(config: Config, world_size: int) -> Iterator[ConfigError]:
    """Yield an error for every contradiction, in order; the numbers are in their ranges."""
    yield from _batch_errors(config, world_size)
    yield from _schedule_errors(config)
    yield from _clipping_errors(config)
    yield from _run_errors(config.run)
    yield from _data_errors(config.data)
    yield from _size_errors(config)
    yield from _repeat_errors(config)
    yield from _class_loss_errors(config.model)
    yield from _term_errors(config)
    yield from _start_weights_errors(config.model)
    yield from _average_errors(config.model)
    yield from _frozen_errors(config)
    yield from _target_errors(config)
    yield from _early_stopping_errors(config)


def _batch_errors(config: Config, world_size: int) -> Iterator[ConfigError]:
    step = 2 * world_size * config.accumulate
    if config.batch_size % step:
        product = f"2 x {world_size} (ranks) x {config.accumulate} (accumulate)"
        allowed = _multiple(config.batch_size, step, f"{step} = {product}") + _ranks_of_the_batch(config, world_size)
        yield refusal("batch_size", config.batch_size, allowed)
    eval_batch_size = config.eval.batch_size
    if eval_batch_size is not None and eval_batch_size % world_size:
        allowed = _multiple(eval_batch_size, world_size, f"{world_size}, the number of ranks")
        yield refusal("eval.batch_size", eval_batch_size, allowed)


def _ranks_of_the_batch(config: Config, world_size: int) -> str:
    """Name the nearest numbers of ranks that can share the batch: a run that goes on keeps its own."""
    pairs, rest = divmod(config.batch_size, 2 * config.accumulate)
    fitting = [ranks for ranks in range(1, pairs + 1) if rest == 0 and pairs % ranks == 0]
    fewer, more = ([ranks for ranks in fitting if (ranks > world_size) == wanted] for wanted in (False, True))
    near = " or ".join(str(ranks) for ranks in (*fewer[-1:], *more[:1]))
    return f"; {config.batch_size} can be shared by {near} rank(s)" if near else ""


def _multiple(number: int, step: int, described: str) -> str:
    below = number // step * step
    close = f"{below} or {below + step}" if below else f"{step}"
    return f"a multiple of {described} (nearest: {close})"


def _schedule_errors(config: Config) -> Iterator[ConfigError]:
    schedule, epochs = config.schedule, config.epochs
    one_cycle = schedule.first_cycle(epochs)
    if not schedule.has_cycles and (schedule.cycles > 1 or schedule.cooldown_epochs > 0):
        key = "cycles" if schedule.cycles > 1 else "cooldown_epochs"
        yield refusal(f"schedule.{key}", getattr(schedule, key), f"{int(key == 'cycles')} with {schedule.name}")
    elif one_cycle <= 0:
        yield refusal("schedule.cooldown_epochs", schedule.cooldown_epochs, f"less than the epochs, {epochs}")
    elif schedule.warmup_epochs > one_cycle:  # `parse_config` cuts it
        yield refusal("schedule.warmup_epochs", schedule.warmup_epochs, f"at most one cycle, {one_cycle:g} epochs")
    milestones = schedule.milestones
    if (schedule.name == "multistep") != bool(milestones):
        allowed = "the epochs at which the rate drops with multistep, and [] without it"
        yield refusal("schedule.milestones", milestones, allowed)
    elif milestones != sorted(set(milestones)):
        yield refusal("schedule.milestones", milestones, "numbers in ascending order")


def _clipping_errors(config: Config) -> Iterator[ConfigError]:
    for key, optim in (("optim", config.optim), ("heads.optim", config.heads.optim)):
        given = [name for name in ("clip_norm", "clip_value", "clip_agc") if getattr(optim, name) is not None]
        if len(given) > 1:
            yield ConfigError(f"{key}: got {' and '.join(given)}; allowed: one way of clipping")
    if config.heads.optim.layer_decay is not None:
        yield refusal("heads.optim.layer_decay", config.heads.optim.layer_decay, "null: heads have no layers")


def _run_errors(run: RunConfig) -> Iterator[ConfigError]:
    if not run.name:
        yield ConfigError("run.name: empty, and no --config file to take it from; allowed: the name of a folder")
    elif error := folder_name_error("run.name", run.name, "run.dir says where it lies"):
        yield error
    if not run.dir or "\0" in run.dir:
        yield refusal("run.dir", run.dir, "the name of a folder; . is the current one")
    if run.resume == "must" and run.overwrite:
        yield ConfigError(
            "run.resume: got must, but run.overwrite deletes what would be resumed; allowed: one of the two"
        )


def folder_name_error(key: str, name: str, elsewhere: str) -> ConfigError | None:
    """Return what is wrong with the name of a run folder; `elsewhere` says what decides where it lies."""
    if name in (".", "..") or not name.isprintable() or "/" in name or "\\" in name:
        return refusal(key, name, f"the name of one folder, without / or \\ ({elsewhere})")
    if len(name.encode()) > _NAME_BYTES:
        return refusal(key, name, f"at most {_NAME_BYTES} bytes")
    return None


def _data_errors(data: DataConfig) -> Iterator[ConfigError]:
    if data.canaries.repeats == []:
        yield refusal("data.canaries.repeats", [], "a number at least 2, or a list of them")
    if data.subset.per_class is not None and data.subset.fraction != 1:
        yield refusal("data.subset.fraction", data.subset.fraction, "1 where data.subset.per_class says how many")
    if data.crop == "pad" and data.crop_padding > data.least_size:
        of_what = "data.progressive.first_size" if data.early_sizes else "data.image_size"
        yield refusal("data.crop_padding", data.crop_padding, f"at most {of_what}, {data.least_size}")
    if data.exif == "apply" and data.dataset != "imagefolder":
        yield refusal("data.exif", "apply", f"ignore: the images of {data.dataset} have no EXIF orientation")
    if data.dataset == "synthetic":
        classes = data.synthetic.classes
        for split in ("train", "val"):
            if (number := getattr(data.synthetic, split)) < classes:
                yield refusal(f"data.synthetic.{split}", number, f"at least data.synthetic.classes, {classes}")
    yield from _augment_errors(data)
    is_cifar = data.dataset in ("cifar10", "cifar100")
    if data.download and not is_cifar:
        yield refusal("data.download", True, "false: only cifar10 and cifar100 can be fetched")
    yield from _root_errors(data, can_be_fetched=is_cifar)
    yield from _stage_errors(data)


def _size_errors(config: Config) -> Iterator[ConfigError]:
    """Yield what keeps training images from growing, or each of their sizes from having a graph of its own."""
    data, grows = config.data, config.data.progressive
    if grows.first_size is None:
        if grows.end_epoch is not None:
            allowed = "null while data.progressive.first_size is null: every epoch has data.image_size"
            yield refusal("data.progressive.end_epoch", grows.end_epoch, allowed)
        return
    for key, size in (("data.progressive.first_size", grows.first_size), ("data.image_size", data.image_size)):
        if size % grows.multiple:
            allowed = _multiple(size, grows.multiple, f"data.progressive.multiple, {grows.multiple}")
            yield refusal(key, size, allowed)
    if grows.first_size >= data.image_size:
        allowed = f"less than data.image_size, {data.image_size}, to which images grow"
        yield refusal("data.progressive.first_size", grows.first_size, allowed)
    last = config.epochs - 1
    if last <= grows.start_epoch:
        allowed = f"an epoch before the last, {last}: images grow after it"
        yield refusal("data.progressive.start_epoch", grows.start_epoch, allowed)
    elif grows.end_epoch is None or not grows.start_epoch < grows.end_epoch <= last:
        allowed = f"an epoch from {grows.start_epoch + 1} to {last} with data.progressive.first_size"
        yield refusal("data.progressive.end_epoch", grows.end_epoch, allowed)
    elif config.runtime.compile and len(sizes := {*data.early_sizes, data.image_size}) > MOST_COMPILED_SIZES:
        allowed = (
            f"a larger one with runtime.compile: each of the {len(sizes)} sizes has a graph of its own, and torch makes "
            f"graphs for {MOST_COMPILED_SIZES} at most"
        )
        yield refusal("data.progressive.multiple", grows.multiple, allowed)


def _repeat_errors(config: Config) -> Iterator[ConfigError]:
    """Yield what keeps images from being repeated within a batch."""
    data, repeats = config.data, config.data.repeats
    if repeats == 1:
        return
    if config.batch_size % repeats or config.batch_size < 2 * repeats:
        fitting = [number for number in range(1, config.batch_size // 2 + 1) if config.batch_size % number == 0]
        match = min(fitting, key=lambda number: abs(number - repeats))
        allowed = f"a divisor of batch_size, {config.batch_size}, at most half of it (nearest: {match})"
        yield refusal("data.repeats", repeats, allowed)
    for key, given, wanted in (("partial", data.partial, "drop"), ("on_error", data.on_error, "raise")):
        if given != wanted:
            yield refusal(
                f"data.{key}", given, f"{wanted} with data.repeats above 1: each repeat has its place in a batch"
            )


def _root_errors(data: DataConfig, *, can_be_fetched: bool) -> Iterator[ConfigError]:
    from rlpheads.loaders.sources.beton import is_store  # imports torch, which the checks before this do without
    from rlpheads.loaders.sources.datasets import WITHOUT_ROOT

    if data.dataset in WITHOUT_ROOT:
        if data.root is not None and not is_store(Path(data.root)):
            yield refusal("data.root", data.root, f"null for {data.dataset}, which {WITHOUT_ROOT[data.dataset]}")
    elif data.dataset == PLUGIN_DATASET:  # its own code looks at its root
        if data.val_fraction is not None:
            yield refusal(
                "data.val_fraction", data.val_fraction, "null: a plug-in's data set has held-out images of its own"
            )
    elif data.root is None:
        fetched = "; with --data.download too it is fetched there" if can_be_fetched else ""
        allowed = f"the folder of the images, which {data.dataset} needs: --data.root FOLDER{fetched}"
        yield refusal("data.root", None, allowed)
    elif not data.download and not Path(data.root).is_dir():
        yield refusal("data.root", data.root, "a folder that exists" + _nearest_folder(Path(data.root)))


def _stage_errors(data: DataConfig) -> Iterator[ConfigError]:
    if data.stage is None:
        return
    from rlpheads.loaders.sources.beton import is_store  # imports torch, which the checks before this do without

    if not data.stage or "\0" in data.stage:
        yield refusal("data.stage", data.stage, "the name of a folder on the node's own disk, or null")
    elif data.dataset != "imagefolder" and (data.root is None or not is_store(Path(data.root))):
        allowed = f"null for {data.dataset}: only the files of an imagefolder and those of a store are copied"
        yield refusal("data.stage", data.stage, allowed)
    elif data.root is not None and Path(data.root).is_dir() and _lies_in(Path(data.stage), Path(data.root)):
        yield refusal("data.stage", data.stage, f"a folder outside data.root, {data.root}")


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _augment_errors(data: DataConfig) -> Iterator[ConfigError]:
    augment = data.augment
    if augment.color_jitter[3] > 0.5:
        yield refusal("data.augment.color_jitter", augment.color_jitter, "a hue, the last number, of at most 0.5")
    if augment.policy == "three" and data.least_size <= BLUR_REACH:
        allowed = f"another policy for images of {BLUR_REACH} pixels or less, which it cannot blur"
        yield refusal("data.augment.policy", augment.policy, allowed)
    if data.mix.cutmix_minmax is not None and data.mix.cutmix:
        yield refusal("data.mix.cutmix", data.mix.cutmix, "0 where data.mix.cutmix_minmax says how large the boxes are")


def _nearest_folder(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor does {path.parent})" if "\0" not in str(path) else ""
    match = nearest(path.name, (entry.name for entry in path.parent.iterdir() if entry.is_dir()))
    return f" (nearest: {path.parent / match})" if match else ""


def _class_loss_errors(model: ModelConfig) -> Iterator[ConfigError]:
    if model.bce_threshold is None:
        return
    if model.loss != "bce":
        yield refusal("model.bce_threshold", model.bce_threshold, f"null while model.loss is {model.loss}")
    elif model.label_smoothing:
        allowed = "null with model.label_smoothing, whose smoothed targets it would only make 0 or 1 again"
        yield refusal("model.bce_threshold", model.bce_threshold, allowed)


def _term_errors(config: Config) -> Iterator[ConfigError]:
    if config.heads.taps == "none":
        for key, value in _loss_weights(config):
            if value > 0:
                yield refusal(key, value, "0 without heads (heads.taps is none); heads at all blocks: heads.taps all")
        if config.heads.labels == "auto":
            yield refusal("heads.labels", "auto", "a number where no tap has a head (heads.taps is none)")
    for key, taps in (("heads.taps", config.heads.taps), ("regularizer.taps", config.regularizer.taps)):
        if taps == []:
            yield refusal(key, taps, "all or at least one place" + (", or none" if key == "heads.taps" else ""))


def _loss_weights(config: Config) -> tuple[tuple[str, float], tuple[str, float]]:
    """Return the weights of the terms with which heads train the backbone, by key."""
    return ("regularizer.factor", config.regularizer.factor), ("heads.joint", config.heads.joint)


def _start_weights_errors(model: ModelConfig) -> Iterator[ConfigError]:
    if model.pretrained and model.checkpoint is not None:
        yield ConfigError("model.checkpoint: got a file, and model.pretrained too; allowed: one of the two")


def _average_errors(model: ModelConfig) -> Iterator[ConfigError]:
    if model.ema_decay is not None:
        return
    for key in ("every", "warmup"):
        given, default = getattr(model.ema, key), getattr(AverageConfig, key)
        if given != default:
            allowed = f"{show_value(default)} while model.ema_decay is null: there is no average"
            yield refusal(f"model.ema.{key}", given, allowed)


def _frozen_errors(config: Config) -> Iterator[ConfigError]:
    model = config.model
    if not model.frozen:
        return
    if config.heads.taps == "none":
        yield ConfigError(
            "model.frozen: got true, and heads.taps is none; allowed: heads, or there is nothing to train"
        )
    for key, value in _loss_weights(config):
        if value > 0:
            yield refusal(key, value, "0 while model.frozen: nothing but the heads is trained")
    if model.ema_decay is not None:
        yield refusal("model.ema_decay", model.ema_decay, "null while model.frozen: the weights never move")


def _target_errors(config: Config) -> Iterator[ConfigError]:
    target = config.regularizer.target
    if target is None:
        return
    if config.regularizer.factor == 0:
        yield refusal("regularizer.target", target, "null while regularizer.factor, where λ starts, is 0")
    if config.heads.audit_draws == 0:
        yield refusal(
            "regularizer.target", target, "null while heads.audit_draws is 0: audit heads measure the distance"
        )
    if config.eval.clean_every == 0:
        yield refusal("regularizer.target", target, "null while eval.clean_every is 0: λ is steered after a clean pass")


def _early_stopping_errors(config: Config) -> Iterator[ConfigError]:
    settings = config.early_stopping
    if settings.metric.startswith("eval_ema") and config.model.ema_decay is None:
        allowed = "eval_top1 or eval_loss while model.ema_decay is null: there is no average"
        yield refusal("early_stopping.metric", settings.metric, allowed)


def log_errors(log: LogConfig) -> Iterator[ConfigError]:
    """Yield an error where W&B or trackio is asked for and is not installed."""
    asked = {"wandb": (log.wandb, "off"), "trackio": (log.trackio, False)}
    for name, (value, off) in asked.items():
        if value == off:
            continue
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # no origin: a mere folder, such as the one in which W&B keeps its runs
            yield ConfigError(
                f"log.{name}: got {show_value(value)}, which needs the package {name}, and it is not installed; allowed here: "
                f"{str(off).lower()}. To have it: pip install 'rlpheads[{name}]'"
            )
