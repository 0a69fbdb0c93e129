"""The first lines of a run: what is trained on what, how much arithmetic an image takes, where the weights come from."""

from __future__ import annotations

from collections.abc import Iterator

from rlpheads.engine.learner.learner import num_parameters
from rlpheads.engine.training.wiring import Training


def opening_lines(training: Training, *, fresh: bool) -> Iterator[str]:
    """Yield the first lines of a run; `fresh`: it begins, and resumes nothing."""
    yield _model_and_images(training)
    yield _arithmetic(training)
    if training.learner.origin and fresh:
        yield training.learner.origin


def _model_and_images(training: Training) -> str:
    config, learner = training.config, training.learner
    heads = "no heads"
    if learner.heads is not None:
        heads = (
            f"{len(learner.dims)} taps x {config.heads.draws} draws x {config.heads.num_labels} labels "
            f"({num_parameters(learner.heads.module):,} parameters in the heads)"
        )
    return (
        f"{training.folder.path}: {config.model.name} ({num_parameters(learner.tapped):,} parameters), {heads}, "
        f"{training.sources.train.manifest.num_samples:,} training and "
        f"{training.sources.heldout.manifest.num_samples:,} held-out images, {config.precision} on "
        f"{training.launch.world_size} x {training.launch.device.type}"
    )


def _arithmetic(training: Training) -> str:
    """Say how much is computed for an image, and what MFU is held against."""
    flops, peak = training.utilisation.flops, training.utilisation.peak
    if flops is None:
        return "arithmetic: this model's cannot be counted; no MFU"
    shares = f"network {flops.network / 1e9:.4g}, heads {flops.heads / 1e9:.4g}"
    beside = "no MFU: the peak of this device is not known" if peak is None else f"peak {peak / 1e12:.4g} TFLOP/s"
    return f"arithmetic: {flops.total / 1e9:.4g} GFLOP an image, forward and backward ({shares}); {beside}"
