"""What an epoch's line says about the random labels, tap by tap: accuracy, bits and margins."""

from __future__ import annotations

from dataclasses import dataclass

from rlpheads.engine.report.evaluation_summary import Evaluation


@dataclass(frozen=True)
class HeadSizes:
    """Sizes that bits are divided by.

    Attributes:
        num_labels: K.
        num_blocks: heads of K labels in one head: the classes, where each has labels of its own, else 1.
        dims: width D of every tap.
        num_network_parameters: parameters of the backbone.
        joint: whether the backbone learns the labels too, so that it holds bits about them.
    """

    num_labels: int
    num_blocks: int
    dims: tuple[int, ...]
    num_network_parameters: int
    joint: bool


def label_figures(found: Evaluation, phase: str, sizes: HeadSizes) -> dict[str, list[float]]:
    """Return accuracy, bits and quantiles of the margin of each tap, by name, averaged over the draws of `found`.

    `bits_PHASE` is T, the bits summed over the samples: a lower bound, in expectation, on what is stored about one
    labelling (negative where a head is overconfident). For predictions that do not know the labels, which are i.i.d.,
    a T of log2(1/δ) or more has a probability of at most δ; so has the average over draws, by Jensen's inequality.
    """
    bits_T = found.bits_T
    figures = {
        f"rla_{phase}": found.rla_T,
        f"bits_{phase}": bits_T,
        f"bits_per_sample_{phase}": [bits / found.num_samples for bits in bits_T],
        f"bits_per_head_parameter_{phase}": [
            bits / (sizes.num_blocks * dim * (sizes.num_labels - 1))
            for bits, dim in zip(bits_T, sizes.dims, strict=True)
        ],
    }
    figures |= {f"margin_{name}_{phase}": margin_T for name, margin_T in found.margins_T.items()}
    if sizes.joint:
        figures[f"bits_per_network_parameter_{phase}"] = [bits / sizes.num_network_parameters for bits in bits_T]
    return figures
