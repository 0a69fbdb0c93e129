"""An optimizer's step that is taken where the gradient of a head's weight is made: its rules, and what implements it."""

from typing import NamedTuple, Protocol

import torch
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


class SurveyArguments(NamedTuple):
    """What the operators of a survey take: its own arguments."""

    features_BD: Tensor
    head: ClassRange
    labels_LB: Tensor
    exponentials: Exponentials
    gradient: LogitGradient


class UpdateArguments(NamedTuple):
    """What the operators of an update take: its own arguments, the rule as its numbers."""

    of_gradient: SurveyArguments
    states: list[Tensor]
    left_out: Tensor
    copy_KD: Tensor | None
    is_adam: bool
    numbers: list[float]

    @classmethod
    def of(
        cls,
        of_gradient: SurveyArguments,
        rule: UpdateRule,
        states: list[Tensor],
        left_out: Tensor,
        copy_KD: Tensor | None = None,
    ) -> "UpdateArguments":
        """Return those of a rule."""
        numbers = [float(number) for number in rule]
        return cls(of_gradient, states, left_out, copy_KD, isinstance(rule, AdamRule), numbers)

    @property
    def rule(self) -> UpdateRule:
        """The rule of these numbers: an operator takes lists of numbers alone."""
        return AdamRule(*self.numbers) if self.is_adam else SgdRule(*self.numbers)  # type: ignore[arg-type]


CHANGED_BY_UPDATE = ("weight_KD", "states", "copy_KD")
"""Members of `UpdateArguments` that an update changes."""


def shape_of_survey(given: SurveyArguments) -> tuple[Tensor, Tensor]:
    """Empty tensors like those that a survey returns."""
    weight_KD = given.head.weight_KD
    return weight_KD.new_empty(len(weight_KD)), weight_KD.new_empty((), dtype=torch.float64)


def shape_of_update(given: UpdateArguments) -> tuple[Tensor, Tensor]:
    """Empty tensors like those that an update returns."""
    return shape_of_survey(given.of_gradient)


class Updates(Protocol):
    """What uses the gradient of a head's weight up tile by tile, beside the kernel whose exponentials it is made from."""

    def serves(self, features_BD: Tensor, weight_KD: Tensor) -> bool:
        """Whether it runs here, and serves heads like this."""

    def survey(self, given: SurveyArguments, /) -> tuple[Tensor, Tensor]:
        """Return the gradient of the bias (K,), and the squared norm of the weight's, float64 ().

        Args:
            given: as `rlpheads.kernels.cpu.tiled_cpu.local_class_gradients` takes it; of what is to be minimised, clipped
                and without loss scale.
        """

    def update(self, given: UpdateArguments, /) -> tuple[Tensor, Tensor]:
        """Take an optimizer's step with the weight, in place; return what `survey` returns.

        Args:
            given: beside what `survey` takes: `states`, the optimizer's tensors of this weight: of Adam exp_avg, exp_avg_sq and
                step, of SGD the momentum's or none; `left_out`, whether nothing is to change, bool () on the weight's device;
                `copy_KD`, the weight in the dtype of the matrix products, which is to stay its copy, or None.
        """
