"""What an implementation of the loss computes itself: the two local stages of a class range."""

from typing import NamedTuple, Protocol

from torch import Tensor

from rlpheads.kernels.rows.partials import ClassRange, Exponentials, LogitGradient, Needs, Partials, Products


class PassArguments(NamedTuple):
    """What the operator of a first stage takes: the stage's own arguments."""

    features_BD: Tensor
    head: ClassRange
    labels_LB: Tensor
    needs: Needs


class Kernel(Protocol):
    """The stages that an implementation computes itself; `rlpheads.kernels.cpu.tiled_cpu` documents the arguments."""

    def local_partials(
        self, features_BD: Tensor, head: ClassRange, labels_LB: Tensor, needs: Needs
    ) -> tuple[Partials, Products, Exponentials]:
        """First stage: reduce a class range to `Partials`, and keep what its own gradients need."""

    def local_class_gradients(
        self,
        features_BD: Tensor,
        head: ClassRange,
        labels_LB: Tensor,
        exponentials: Exponentials,
        gradient: LogitGradient,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Last stage: gradients of the range's weight and bias, each None unless wanted."""
