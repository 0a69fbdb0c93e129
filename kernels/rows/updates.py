"""An optimizer's step that is taken where the gradient of a head's weight is made: its rules, and what implements it."""

from typing import NamedTuple, Protocol

from torch import Tensor

from rlpheads.kernels.rows.partials import ClassRange, Exponentials, LogitGradient


class AdamRule(NamedTuple):
    """Adam's numbers in torch's terms; its states are the averages of gradient and square, and the count of steps."""

    lr: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    decoupled: bool
    """Whether weights decay by themselves (AdamW), not through their gradient."""

    @property
    def keep(self) -> float:
        """What the weight is multiplied by first."""
        return 1 - self.lr * self.weight_decay if self.decoupled else 1.0

    @property
    def l2(self) -> float:
        """What share of the weight is added to its gradient."""
        return 0.0 if self.decoupled else self.weight_decay


class SgdRule(NamedTuple):
    """SGD's numbers in torch's terms; its state is the momentum's buffer, which begins at 0, or none."""

    lr: float
    weight_decay: float
    momentum: float
    nesterov: bool


UpdateRule = AdamRule | SgdRule


def rule_of(is_adam: bool, numbers: list[float]) -> UpdateRule:
    """Return the rule of these numbers: an operator takes lists of numbers alone."""
    return AdamRule(*numbers) if is_adam else SgdRule(*numbers)  # type: ignore[arg-type]


class Updates(Protocol):
    """What uses the gradient of a head's weight up tile by tile, beside the kernel whose exponentials it is made from."""

    def serves(self, features_BD: Tensor, weight_KD: Tensor) -> bool:
        """Whether it runs here, and serves heads like this."""

    def survey(
        self,
        features_BD: Tensor,
        head: ClassRange,
        labels_LB: Tensor,
        exponentials: Exponentials,
        gradient: LogitGradient,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient of the bias (K,), and the squared norm of the weight's, float64 ()."""

    def update(
        self,
        features_BD: Tensor,
        head: ClassRange,
        labels_LB: Tensor,
        exponentials: Exponentials,
        gradient: LogitGradient,
        rule: UpdateRule,
        states: list[Tensor],
        left_out: Tensor,
        copy_KD: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Take an optimizer's step with the weight, in place; return what `survey` returns.

        Args:
            features_BD: as for `rlpheads.kernels.cpu.tiled_cpu.local_class_gradients`, like all before `rule`.
            head: likewise.
            labels_LB: likewise.
            exponentials: likewise.
            gradient: likewise; of what is to be minimised, clipped and without loss scale.
            rule: how the step is taken.
            states: the optimizer's tensors of this weight: of Adam exp_avg, exp_avg_sq and step, of SGD the momentum's or none.
            left_out: whether nothing is to change, bool () on the weight's device.
            copy_KD: the weight in the dtype of the matrix products, which is to stay its copy; None: there is none.
        """
