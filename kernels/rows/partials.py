"""What the three stages of the loss exchange: class ranges, partial softmax statistics of each row, kept exponentials.

The head's classes may be split into ranges, one a device. Each range is reduced to a few numbers for each row (`Partials`),
as in an online softmax, small enough to be exchanged; what only the range's own gradients need (`Products`, `Exponentials`)
stays on its device.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

NO_CLASS_SHIFT = -1e30
"""Shift of a row that has met no class but its own labels: finite, so that differences of shifts are never NaN."""


class ClassRange(NamedTuple):
    """A contiguous range of a linear head's classes; the whole head is the range that starts at 0."""

    weight_KD: Tensor
    """Weight of the range's classes."""
    bias_K: Tensor | None
    """Their bias, or None."""
    start: int
    """Label of the range's first class."""
    num_labels: int
    """Number of classes of the whole head."""

    def detach(self) -> "ClassRange":
        """Return the same range, outside every graph."""
        bias_K = None if self.bias_K is None else self.bias_K.detach()
        return self._replace(weight_KD=self.weight_KD.detach(), bias_K=bias_K)


class Needs(NamedTuple):
    """Which values and gradients are needed, so that nothing else is computed."""

    regularizer: str | None
    """Kind of regularizer whose value is wanted, or None."""
    feature_gradient: bool
    """A gradient of the features will be asked for."""
    class_gradients: bool
    """A gradient of the weight or the bias will be asked for."""
    memory_budget: int
    """Bytes of exponentials that may be kept for the weight's gradient; what does not fit is recomputed."""

    @property
    def moments(self) -> bool:
        """Whether the regularizer takes the moments of the exponentials."""
        return self.regularizer == "entropy"

    @property
    def sum_logits(self) -> bool:
        """Whether the regularizer takes the sum of all logits."""
        return self.regularizer == "uniform"


class Partials(NamedTuple):
    """Softmax statistics of each row over one class range; L is the number of labels of a row, 1 or 2.

    The labels' own classes are left out of every sum of exponentials and of both maxima: this is what keeps each loss
    exact however far a label's logit lies above the others. Σexp itself is not carried, as it would absorb the rest.
    """

    shift_B: Tensor
    """s, subtracted from the logits before they are exponentiated; `NO_CLASS_SHIFT` where no class is left."""
    sum_others_B: Tensor
    """Σ e^{z_j − s} over the classes that are none of the row's labels."""
    moment_others_B: Tensor
    """Σ e^{z_j − s}·(z_j − s) over the same classes; computed for `entropy` only, else 0."""
    sum_logits_B: Tensor
    """Σ z_j over all classes of the range; computed for `uniform` only, else 0."""
    label_logit_LB: Tensor
    """z at each label; −inf where the label lies outside the range."""
    max_before_B: Tensor
    """Largest z_j of the classes below the first label, the second label left out; −inf where there is none."""
    max_after_B: Tensor
    """Largest z_j of the classes above the first label, the second label left out; −inf where there is none.

    The two maxima stand for (max, argmax): the first label is the argmax, ties to the lowest index, exactly when its
    logit is > max_before and ≥ max_after, so that merging them compares no indices. Where one of them settles the
    question alone (max_before ≥ max_after, or max_after > max_before) the other may be −inf.
    """


def packed_partials(partials_of_heads: Sequence[Partials]) -> Tensor:
    """The partials of all heads' rows as they travel, (F, R), one head after another."""
    members = [parts[0] if len(parts) == 1 else torch.cat(parts, -1) for parts in zip(*partials_of_heads, strict=True)]
    return torch.cat([torch.atleast_2d(numbers) for numbers in members])


def unpacked(packed_XFR: Tensor) -> Partials:
    """The members of packed partials (…, F, R)."""
    shift, sums, moment, logits, *_, before, after = packed_XFR.unbind(-2)
    return Partials(shift, sums, moment, logits, packed_XFR[..., 4:-2, :], before, after)


class Products(NamedTuple):
    """Sums over the range's classes with their weights; members that were not asked for are empty."""

    exp_weight_BD: Tensor
    """U = Σ e^{z_j − s} W_j over the classes that are none of the row's labels."""
    moment_weight_BD: Tensor
    """Σ e^{z_j − s}·(z_j − s) W_j over the same classes (`entropy`)."""
    weight_sum_D: Tensor
    """Σ W_j over all classes of the range (`uniform`)."""
    operand_dtype: torch.dtype | None = None
    """Type that the weight was rounded to before it was multiplied, None for its own. Its rows at the labels must be, too:
    near chance they cancel against the sums."""
    label_weight_LBD: Tensor | None = None
    """W_y of each row's labels, 0 where they lie outside the range; None where they are still to be read from the weight."""


class Exponentials(NamedTuple):
    """e^{z − tile shift}, 0 at the labels, as far as they were kept; C is the number of class tiles."""

    flat: Tensor
    """Those of the first tiles, in a layout of the implementation's own; what is missing is recomputed."""
    tile_shift_CB: Tensor
    """Shift of each row in each tile."""
    tile_base_CB: Tensor | None = None
    """What was subtracted from the exponentials of each row in each tile before they were rounded (`triton`)."""


class LogitGradient(NamedTuple):
    """dL/dz of every row in the form that the last stage takes."""

    scale_CB: Tensor
    """Multiplies the exponentials of each tile, as they were taken with the tile's shift."""
    label_LB: Tensor
    """dL/dz at the labels."""

    def contiguous(self) -> "LogitGradient":
        """Return the same, each contiguous."""
        return LogitGradient(self.scale_CB.contiguous(), self.label_LB.contiguous())


def accumulation_dtype(features_BD: Tensor, weight_KD: Tensor) -> torch.dtype:
    """Type of every sum and statistic: float64 if an input is, else float32."""
    if features_BD.dtype is weight_KD.dtype is torch.float32:
        return torch.float32
    return torch.promote_types(torch.promote_types(features_BD.dtype, weight_KD.dtype), torch.float32)
