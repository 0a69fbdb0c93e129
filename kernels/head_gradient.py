"""A head's gradients before they are made: what its backward pass hands over where something else than `.grad` is to take them.

Gradients of a head of 100,000 classes are as large as the head. `HandingOver` is a kernel whose last stage makes none: in
the backward pass it gives a consumer a `HeadGradient`, which holds the kept exponentials and each row's dL/dz, and from which
the gradients can be made later, one head at a time, or never: `survey` and `update` use them up where they are made.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.cpu import tile_update
from rlpheads.kernels.gpu import triton_update
from rlpheads.kernels.gpu.heads.kept_stages import KeptStages
from rlpheads.kernels.row_norms import row_norms
from rlpheads.kernels.rows.kernel import Kernel
from rlpheads.kernels.rows.partials import ClassRange, Exponentials, LogitGradient, Needs, Partials, Products
from rlpheads.kernels.rows.updates import SurveyArguments, UpdateArguments, UpdateRule, Updates

UPDATES: dict[str, Updates] = {"tiled_cpu": tile_update, "triton": triton_update}
"""What uses gradients up in tiles, by the name of the kernel in `stages.KERNELS`."""


class HeadGradient(NamedTuple):
    """What the gradients of a head's weight and bias are made from; none of it is as large as they are."""

    kernel: Kernel
    features_BD: Tensor
    head: ClassRange
    labels_LB: Tensor
    exponentials: Exponentials
    gradient: LogitGradient
    updates: Updates | None = None
    """Uses it up in tiles; None: nothing does."""

    @property
    def weight(self) -> Tensor:
        """The weight that it belongs to."""
        return self.head.weight_KD

    @property
    def in_tiles(self) -> bool:
        """Whether it can be used up without being made, tile by tile."""
        return (
            bool(len(self.weight)) and self.updates is not None and self.updates.serves(self.features_BD, self.weight)
        )

    def scaled(self, factor: Tensor) -> "HeadGradient":
        """Return the same times a factor ()."""
        factor = factor.to(self.gradient.scale_CB.dtype)
        return self._replace(gradient=LogitGradient(*(each * factor for each in self.gradient)))

    @torch.no_grad()
    def make(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of weight and bias, None where there is no bias."""
        wanted = (True, self.head.bias_K is not None)
        return self.kernel.local_class_gradients(*self._made_from, wanted)

    def norm_bound(self) -> Tensor:
        """Return a bound of the norm of the weight's gradient, float64 (): finite if and only if the gradient is, below 1e30.

        From features, the scale of each row's exponentials, and the labels' dL/dz: without a pass over the classes.
        Exponentials are taken for at most e^8, as they are on a CPU; on a GPU they may be larger, though never infinite, and
        the norm with them.
        """
        scale_CB, label_LB = self.gradient.scale_CB.double(), self.gradient.label_LB.double()
        largest_B = scale_CB.abs().amax(0) * (math.e**8 * len(self.weight) ** 0.5) + label_LB.abs().sum(0)
        return (largest_B * torch.linalg.vector_norm(self.features_BD, dim=1, dtype=torch.float64)).sum()

    @torch.no_grad()
    def survey(self) -> tuple[Tensor | None, Tensor]:
        """Return the gradient of the bias, and the squared norm of the weight's, ().

        Where it cannot be done in tiles the weight's gradient is made for it, and dropped.
        """
        if self.in_tiles:
            assert self.updates is not None
            surveyed_K, squared = self.updates.survey(SurveyArguments(*self._made_from))
            return self._of_bias(surveyed_K), squared
        weight_KD, bias_K = self.make()
        assert weight_KD is not None
        return bias_K, squared_norm(weight_KD)

    @torch.no_grad()
    def update(self, rule: UpdateRule, states: list[Tensor], left_out: Tensor) -> tuple[Tensor | None, Tensor]:
        """Take an optimizer's step with the weight, in tiles; see `rlpheads.kernels.rows.updates.Updates.update`.

        Returns:
            What `survey` returns.
        """
        assert self.updates is not None
        weight, kept = self.weight, self.kernel.kept if isinstance(self.kernel, KeptStages) else None
        copy_KD = None if kept is None else kept.copy_of(weight, self.features_BD.dtype)
        of_gradient = SurveyArguments(*self._made_from)
        updated_K, squared = self.updates.update(UpdateArguments.of(of_gradient, rule, states, left_out, copy_KD))
        if kept is not None and copy_KD is not None:
            kept.renew(weight)
        return self._of_bias(updated_K), squared

    @property
    def _made_from(self) -> tuple[Tensor, ClassRange, Tensor, Exponentials, LogitGradient]:
        return self.features_BD, self.head, self.labels_LB, self.exponentials, self.gradient

    def _of_bias(self, gradient_K: Tensor) -> Tensor | None:
        return None if self.head.bias_K is None else gradient_K


def squared_norm(gradient_KD: Tensor) -> Tensor:
    """Return the squared norm of a gradient, (), in float32 or wider."""
    return torch.linalg.vector_norm(row_norms(gradient_KD)) ** 2


Consumer = Callable[[HeadGradient], None]
"""Takes each head's gradient in the backward pass, in place of `.grad`."""


@dataclass(frozen=True)
class HandingOver:
    """`rlpheads.kernels.rows.kernel.Kernel` whose gradients go to a consumer before they are made.

    Args:
        name: of the kernel in `stages.KERNELS`.
        kernel: the kernel.
        consumer: takes the gradients.
    """

    name: str
    kernel: Kernel
    consumer: Consumer

    def local_partials(
        self, features_BD: Tensor, head: ClassRange, labels_LB: Tensor, needs: Needs
    ) -> tuple[Partials, Products, Exponentials]:
        """First stage: the kernel's."""
        return self.kernel.local_partials(features_BD, head, labels_LB, needs)

    def local_class_gradients(
        self,
        features_BD: Tensor,
        head: ClassRange,
        labels_LB: Tensor,
        exponentials: Exponentials,
        gradient: LogitGradient,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Last stage: hand over what the gradients are made from, and return none. Nothing where the weight's is not wanted."""
        made_from = features_BD, head, labels_LB, exponentials, gradient
        if not wanted[0]:
            return self.kernel.local_class_gradients(*made_from, wanted)
        self.consumer(HeadGradient(self.kernel, *made_from, UPDATES.get(self.name)))
        return None, None


def kernel_beneath(kernel: Kernel) -> Kernel:
    """Return the kernel that computes: the one whose gradients are handed over, or this one."""
    return kernel.kernel if isinstance(kernel, HandingOver) else kernel
