"""The first lines of a run: what is trained on what, how much arithmetic an image takes, where the weights come from."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from rlpheads.engine.config.launcher_variables import local_world_size
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed.cores import thread_advice
from rlpheads.engine.learner.learner import num_parameters
from rlpheads.engine.report.batch_picture import draw_batch
from rlpheads.engine.training.training import Training
from rlpheads.memorization.heads.sharded_heads import ShardedRLPHeads


def opening_lines(training: Training, *, fresh: bool) -> Iterator[str]:
    """Yield the first lines of a run; `fresh`: it begins, and resumes nothing."""
    yield _model_and_images(training)
    yield from _sizes(training.run.config)
    yield _arithmetic(training)
    if training.learner.attention_line:
        yield training.learner.attention_line
    if training.learner.sharding is not None and training.learner.sharding.line:
        yield training.learner.sharding.line
    if training.learner.update_line:
        yield training.learner.update_line
    if training.run.config.runtime.compile and (reason := _heads_not_compiled(training)):
        yield f"runtime.compile: the network alone; heads are not compiled where {reason}"
    if training.run.launch.device.type == "cpu":
        is_set = "OMP_NUM_THREADS" in os.environ
        advice = thread_advice(torch.get_num_threads(), local_world_size(), is_set=is_set)
        if advice is not None:
            yield advice
    if training.learner.origin and fresh:
        yield training.learner.origin


def draw_first_batch(training: Training) -> None:
    """Draw the batch of the last step, where it is one of the first of the run that are asked for (log.images)."""
    step, batch = training.num_updates, training.last_batch
    if batch is None or step > training.run.config.log.images or not training.run.launch.is_main:
        return
    path = training.run.folder.figures / f"batch_{step:04d}.png"
    data, classes = training.run.config.data, training.run.sources.train.manifest.classes
    draw_batch(path, batch, classes, data.mean, data.std)
    training.run.log.show(step, [path])


def _heads_not_compiled(training: Training) -> str:
    """Say what keeps the heads from being compiled; empty where nothing does, or there are none."""
    heads = training.learner.heads
    if heads is None:
        return ""
    if isinstance(heads.module, ShardedRLPHeads):
        return "they are sharded by class (heads.shard)"
    return "they are updated as their gradients are made (heads.update)" if heads.pending is not None else ""


def _model_and_images(training: Training) -> str:
    config, learner = training.run.config, training.learner
    heads = "no heads"
    if learner.heads is not None:
        heads = (
            f"{len(learner.dims)} taps x {config.heads.draws} draws x {config.heads.num_labels} labels "
            f"({num_parameters(learner.heads.module):,} parameters in the heads)"
        )
    return (
        f"{training.run.folder.path}: {config.model.name} ({num_parameters(learner.tapped):,} parameters), {heads}, "
        f"{training.run.sources.train.manifest.num_samples:,} training and "
        f"{training.run.sources.heldout.manifest.num_samples:,} held-out images, {config.precision} on "
        f"{training.run.launch.world_size} x {training.run.launch.device.type}"
    )


def _sizes(config: Config) -> Iterator[str]:
    """Say what sizes images have, where it is not one alone."""
    sizes = (*config.data.early_sizes, config.data.image_size)
    begins = [epoch for epoch, size in enumerate(sizes) if epoch == 0 or size != sizes[epoch - 1]]
    if len(begins) == 1 and config.evaluation_size == config.data.image_size:
        return
    trained = ", ".join(f"{sizes[epoch]}" + (f" from epoch {epoch}" if epoch else "") for epoch in begins)
    yield f"side of the images: {trained}; {config.evaluation_size} in evaluations and clean passes"


def _arithmetic(training: Training) -> str:
    """Say how much is computed for an image, and what MFU is held against."""
    flops, peak = training.gauges.utilisation.flops, training.gauges.utilisation.peak
    if training.run.config.data.early_sizes:
        return "arithmetic: an image's grows with its size; no MFU"
    if flops is None:
        return "arithmetic: this model's cannot be counted; no MFU"
    shares = f"network {flops.network / 1e9:.4g}, heads {flops.heads / 1e9:.4g}"
    beside = "no MFU: the peak of this device is not known" if peak is None else f"peak {peak / 1e12:.4g} TFLOP/s"
    return f"arithmetic: {flops.total / 1e9:.4g} GFLOP an image, forward and backward ({shares}); {beside}"
