"""Class probe: least squares from frozen features to the classes, beside the answers of the network that they are from.

It is fitted to the classes that the network was trained with. Where some of them are wrong, a network that has learned
the wrong ones may hold more of the true classes in its inner layers than it answers: *latent generalisation*
(Menta et al. 2025). Two numbers show it: the probe's accuracy on held-out images less the network's, and the share of
mislabelled training images for which the probe answers the true class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.memorization.measures.estimates import Estimated, mean_estimate, share_estimate
from rlpheads.memorization.probes.feature_blocks import Features, iterate_blocks
from rlpheads.memorization.probes.feature_moments import collect_moments
from rlpheads.memorization.probes.probe_heads import least_squares_head


class ClassAnswers(NamedTuple):
    """The class that is answered for each image, int64: of the N training images and of the H held-out ones."""

    train_N: Tensor
    heldout_H: Tensor


@dataclass(frozen=True)
class ImageClasses:
    """Classes of the images behind some features.

    Attributes:
        given_N: int64, what the network was trained with.
        heldout_H: int64.
        mislabelled_P: positions in `given_N` of the images whose given class is not their true one.
        true_P: int64, the true classes of those.
        num_classes: C.
    """

    given_N: Tensor
    heldout_H: Tensor
    mislabelled_P: Tensor
    true_P: Tensor
    num_classes: int


@dataclass(frozen=True)
class AnswerAudit:
    """How often some answers are right; shares in [0, 1], with Wilson's intervals.

    Attributes:
        heldout: of the held-out images.
        true_class: of the mislabelled training images, answered with their true class; unknown where there are none.
        given_class: of the same, answered with the class that was given to them.
    """

    heldout: Estimated
    true_class: Estimated
    given_class: Estimated


@dataclass(frozen=True)
class ClassProbeAudit:
    """What the class probe of one tap answers.

    Attributes:
        probe: how often it is right.
        heldout_gain: its held-out accuracy less the network's, over the same images; Student's t over images.
        true_class_gain: the same of the true classes of mislabelled training images; unknown where there are none.
    """

    probe: AnswerAudit
    heldout_gain: Estimated
    true_class_gain: Estimated


def fit_class_probe(train: Features, heldout: Features, classes: ImageClasses) -> ClassAnswers:
    """Fit least squares with an intercept to the given classes and return its answers.

    Args:
        train: features of the training images (N, D), in the order of `classes.given_N`.
        heldout: features of the held-out images (H, D).
        classes: classes of both.

    Raises:
        ValueError: features and classes do not fit together.
    """
    moments = collect_moments(train, classes.given_N[None], classes.num_classes)
    weight_MKD, bias_MK = least_squares_head(moments)

    def answers(features: Features) -> Tensor:
        centred = (block_BD.double() - moments.mean_D for block_BD in iterate_blocks(features))
        return torch.cat([(block_BD @ weight_MKD[0].T + bias_MK[0]).argmax(1).cpu() for block_BD in centred])

    return ClassAnswers(answers(train), answers(heldout))


def audit_answers(answers: ClassAnswers, classes: ImageClasses, level: float = 0.95) -> AnswerAudit:
    """Count how often the answers are right."""
    right = _right(answers, classes)
    wrong_P = classes.given_N[classes.mislabelled_P] == answers.train_N[classes.mislabelled_P]
    return AnswerAudit(*(_share(right_B, level) for right_B in (right.heldout_H, right.mislabelled_P, wrong_P)))


def audit_class_probe(
    answers: ClassAnswers, network: ClassAnswers, classes: ImageClasses, level: float = 0.95
) -> ClassProbeAudit:
    """Compare a class probe's answers with the network's, image by image.

    Args:
        answers: from `fit_class_probe`.
        network: those of the network.
        classes: classes of the images.
        level: nominal coverage of the intervals.
    """
    probe, own = _right(answers, classes), _right(network, classes)
    return ClassProbeAudit(
        probe=audit_answers(answers, classes, level),
        heldout_gain=mean_estimate(probe.heldout_H.double() - own.heldout_H.double(), level),
        true_class_gain=mean_estimate(probe.mislabelled_P.double() - own.mislabelled_P.double(), level),
    )


class _Right(NamedTuple):
    heldout_H: Tensor
    mislabelled_P: Tensor


def _right(answers: ClassAnswers, classes: ImageClasses) -> _Right:
    return _Right(answers.heldout_H == classes.heldout_H, answers.train_N[classes.mislabelled_P] == classes.true_P)


def _share(right_B: Tensor, level: float) -> Estimated:
    return share_estimate(float(right_B.double().mean()) if len(right_B) else 0.0, len(right_B), level)
