"""The local stages by Triton, on weights that are kept in the dtype of the products from one pass to the next."""

from dataclasses import dataclass

from torch import Tensor

from rlpheads.kernels.gpu import triton_loss
from rlpheads.kernels.gpu.heads.kept_operands import KeptOperands
from rlpheads.kernels.rows.partials import ClassRange, Exponentials, Needs, Partials, Products


@dataclass(frozen=True)
class KeptStages:
    """`rlpheads.kernels.rows.kernel.Kernel`, as `rlpheads.kernels.gpu.triton_loss` is, which casts a weight once a version."""

    kept: KeptOperands

    def local_partials(
        self, features_BD: Tensor, head: ClassRange, labels_LB: Tensor, needs: Needs
    ) -> tuple[Partials, Products, Exponentials]:
        """First stage, of the weight's copy."""
        if head.weight_KD.dtype != features_BD.dtype:
            head = head._replace(weight_KD=self.kept.stack([head.weight_KD], features_BD.dtype))
        return triton_loss.local_partials(features_BD, head, labels_LB, needs)

    local_class_gradients = staticmethod(triton_loss.local_class_gradients)
    """Last stage."""
