"""The line beside a trained head: a least-squares head refitted, on the features of a clean pass, to labels that nobody saw.

What a refit reaches on fresh labels is the features' geometry and the head's own capacity; what a trained head reaches beyond
it is memory of its labels. Draws share one factorisation, so that many are cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpheads.engine.config.schema import Config
from rlpheads.engine.config.streams import stream_seed
from rlpheads.engine.learner.clean_features import CleanFeatures
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.memorization.heads.class_blocks import class_block_labels
from rlpheads.memorization.heads.labels import label_table

MAX_BYTES = 2**30
"""Features of all taps that `eval.refit` auto keeps on a device: digits and CIFAR fit, ImageNet is `rlpheads audit`'s."""
MAX_PRODUCTS = 4 * 10**9
"""Multiplications that the draws of one tap may cost in a clean pass: 0.1 to 0.4 seconds of two cores."""
MAX_PRODUCTS_OF_FEWEST = 10 * MAX_PRODUCTS
"""The same of the fewest draws: beyond it, as with a label for every image, `eval.refit` auto leaves refits out."""
MIN_DRAWS, MAX_DRAWS = 4, 200


@dataclass(frozen=True)
class FreshRefit:
    """Accuracy of heads refitted to fresh labels, in [0, 1], at each tap.

    Attributes:
        accuracy_T: mean over the draws.
        half_width_T: half of the 95 % interval of that mean, over the draws (Student's t).
        hit_rate_TN: share of the draws that hit each training image, fp64 on the CPU; NaN for one that was not read.
        num_draws: fresh draws at each tap.
    """

    accuracy_T: list[float]
    half_width_T: list[float]
    hit_rate_TN: Tensor
    num_draws: int

    def figures(self) -> dict[str, object]:
        """Return the figures under their names in an epoch's line of metrics.jsonl."""
        return {"fresh_refit_clean": self.accuracy_T, "fresh_refit_half_width_clean": self.half_width_T}


def keeps_features(config: Config, num_samples: int, dims: Sequence[int]) -> bool:
    """Whether clean passes keep the features of N samples at taps of these widths: `eval.refit`, and room and time for them."""
    if not dims or config.eval.refit == "off":
        return False
    num_products = MIN_DRAWS * num_samples * max(dims) * config.heads.num_labels
    is_affordable = 4 * num_samples * sum(dims) <= MAX_BYTES and num_products <= MAX_PRODUCTS_OF_FEWEST
    return config.eval.refit == "on" or is_affordable


def refit_fresh_labels(
    features: CleanFeatures,
    config: Config,
    manifest: Manifest,
    taps: Sequence[int | str],
    step: int,
    advance: Callable[[], None],
) -> FreshRefit:
    """Refit heads at every tap.

    Args:
        features: of a clean pass, of all ranks.
        config: settings of the run, K settled.
        manifest: of the training images.
        taps: their names.
        step: optimizer steps taken; each step and tap has labels of its own.
        advance: is called for every few rows, of which a fit to a label for every image takes seconds each.
    """
    from rlpheads.memorization.measures.intervals import draw_interval  # scipy loads after the first epoch
    from rlpheads.memorization.probes.feature_blocks import WatchedRows
    from rlpheads.memorization.probes.probe_heads import ClassBlockProbe, LeastSquaresProbe, Probe

    probe: Probe = LeastSquaresProbe()
    if config.heads.balance == "per_class":
        probe = ClassBlockProbe(probe)
    tables = features.tables()
    num_draws = _num_draws(len(tables[0]), max(table.shape[1] for table in tables), config.heads.num_labels)
    accuracies, half_widths = [], []
    read_N = features.read_N.cpu()
    hit_rate_TN = torch.full((len(tables), len(read_N)), torch.nan, dtype=torch.float64)
    for tap, table, hit_rate_N in zip(taps, tables, hit_rate_TN, strict=True):
        labels_FN = _fresh_labels(config, manifest, read_N, num_draws, (step, str(tap)))
        num_rows = MAX_PRODUCTS // (num_draws * table.shape[1] * config.heads.num_labels)
        fit = probe(WatchedRows(table, advance, num_rows), labels_FN, config.heads.num_labels)
        interval = draw_interval(fit.accuracy_M)
        accuracies.append(float(fit.accuracy_M.mean()))
        half_widths.append(float(interval.high - interval.low) / 2)
        hit_rate_N[read_N] = fit.hit_rate_N
    return FreshRefit(accuracies, half_widths, hit_rate_TN, num_draws)


def _num_draws(num_samples: int, num_features: int, num_labels: int) -> int:
    """Return the draws that an audit would take, cut where they would cost more than a clean pass may."""
    from rlpheads.memorization.audit.fresh_draws import least_squares_draws

    wanted = least_squares_draws(num_samples, num_samples, num_features, num_labels)
    affordable = MAX_PRODUCTS // (num_samples * num_features * num_labels)
    return max(MIN_DRAWS, min(wanted, affordable, MAX_DRAWS))


def _fresh_labels(
    config: Config, manifest: Manifest, read_N: Tensor, num_draws: int, stream: tuple[int, str]
) -> Tensor:
    """Return labels of the samples that were read, int (F, n)."""
    num_labels = config.heads.num_labels
    seed = stream_seed(config.seed_of("labels"), "refit on fresh labels", *stream)
    labels_FN = label_table(
        int(read_N.sum()),
        num_labels,
        num_draws=num_draws,
        seed=seed,
        split="refit",
        balance=config.heads.label_balance,
    )
    if config.heads.balance != "per_class":
        return labels_FN
    return class_block_labels(labels_FN, torch.from_numpy(manifest.targets)[read_N], num_labels)
