"""The class probe: what it answers where the truth is set by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpheads.memorization.probes.class_probe import (
    ClassAnswers,
    ImageClasses,
    audit_answers,
    audit_class_probe,
    fit_class_probe,
)


def separable(num_train=400, num_heldout=200, num_classes=4, num_wrong=0, seed=0):
    """Rows around one corner for each class, which least squares tells apart; the first `num_wrong` have the next class."""
    generator = torch.Generator().manual_seed(seed)
    true_N = torch.randint(num_classes, (num_train,), generator=generator)
    heldout_H = torch.randint(num_classes, (num_heldout,), generator=generator)
    corners_CD = 3 * torch.eye(num_classes, 6)
    rows = [corners_CD[of] + 0.1 * torch.randn(len(of), 6, generator=generator) for of in (true_N, heldout_H)]
    given_N = true_N.clone()
    given_N[:num_wrong] = (true_N[:num_wrong] + 1) % num_classes
    wrong_P = torch.arange(num_wrong)
    return *rows, ImageClasses(given_N, heldout_H, wrong_P, true_N[wrong_P], num_classes)


def test_classes_that_a_plane_separates_are_all_right():
    train_ND, heldout_HD, classes = separable()
    answers = fit_class_probe(train_ND, heldout_HD, classes)
    assert torch.equal(answers.train_N, classes.given_N)
    assert torch.equal(answers.heldout_H, classes.heldout_H)


def test_the_true_classes_are_found_beneath_the_wrong_ones_that_a_network_has_fitted():
    """A tenth of the classes are wrong: a linear probe cannot fit them, a network that answers what it was given has."""
    train_ND, heldout_HD, classes = separable(num_wrong=40)
    network = ClassAnswers(
        classes.given_N, classes.heldout_H.roll(1)
    )  # fitted by heart, and as good as chance elsewhere
    own = audit_answers(network, classes)
    found = audit_class_probe(fit_class_probe(train_ND, heldout_HD, classes), network, classes)
    assert (own.true_class.value, own.given_class.value) == (0, 1)
    assert (found.probe.true_class.value, found.probe.given_class.value) == (1, 0)
    assert found.true_class_gain == (1, 1, 1)
    assert found.probe.heldout.value == 1
    assert found.heldout_gain.value == pytest.approx(1 - own.heldout.value)
    assert found.heldout_gain.excludes(0)


def test_without_mislabelled_images_nothing_is_known_of_them():
    train_ND, heldout_HD, classes = separable()
    answers = fit_class_probe(train_ND, heldout_HD, classes)
    found = audit_class_probe(answers, answers, classes)
    assert math.isnan(found.probe.true_class.value)
    assert math.isnan(found.true_class_gain.value)
    assert found.heldout_gain == (0, 0, 0)


def test_blocks_of_rows_give_what_one_tensor_gives():
    train_ND, heldout_HD, classes = separable(num_wrong=30)
    whole = fit_class_probe(train_ND, heldout_HD, classes)
    parts = fit_class_probe(list(train_ND.split(7)), list(heldout_HD.split(31)), classes)
    assert torch.equal(whole.train_N, parts.train_N)
    assert torch.equal(whole.heldout_H, parts.heldout_H)


def test_features_and_classes_of_different_numbers_are_refused():
    train_ND, heldout_HD, classes = separable()
    with pytest.raises(ValueError, match="rows of features for 400 labels"):
        fit_class_probe(train_ND[:-1], heldout_HD, classes)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10), seed=st.integers(0, 100))
def test_the_answers_do_not_depend_on_scale_and_place_of_the_features(scale, shift, seed):
    train_ND, heldout_HD, classes = separable(60, 30, seed=seed)
    plain = fit_class_probe(train_ND.double(), heldout_HD.double(), classes)
    moved = fit_class_probe(train_ND.double() * scale + shift, heldout_HD.double() * scale + shift, classes)
    assert torch.equal(plain.heldout_H, moved.heldout_H)
