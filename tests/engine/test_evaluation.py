"""Evaluation sees every sample once and leaves the weights alone."""

from dataclasses import replace

import pytest
import torch

from rlpheads.engine.evaluation import EvaluationInterruptedError, evaluate


def evaluated(training, split):
    training.learner.train(False)
    return evaluate(training.learner.bare, split, training.routes.measuring(), training.prepare, "fp32", lambda: False)


@pytest.mark.parametrize("batch_size", [32, 360, 7])
def test_every_sample_counts_once_whatever_the_batch(tiny, build, batch_size):
    training = build(tiny, eval=replace(tiny.eval, batch_size=batch_size))
    found = evaluated(training, training.heldout)
    assert found.num_samples == training.sources.heldout.manifest.num_samples
    counts = training.heldout.ledger.tensors()["count"]
    assert torch.equal(counts, torch.ones_like(counts))


def test_figures_do_not_depend_on_the_batch_or_on_what_was_evaluated_before(tiny, build):
    training, other = build(tiny), build(tiny, eval=replace(tiny.eval, batch_size=50))
    first = evaluated(training, training.heldout)
    again = evaluated(training, training.heldout)
    different = evaluated(other, other.heldout)
    assert first == again
    assert first.loss == pytest.approx(different.loss, rel=1e-6)
    assert first.rla_TM == different.rla_TM


def test_clean_and_heldout_have_their_own_labels(tiny, build):
    training = build(tiny)
    length = training.heldout.table_MN.shape[1]
    assert not torch.equal(training.clean.table_MN[:, :length], training.heldout.table_MN)


def test_weights_and_gradients_stay(tiny, build):
    training = build(tiny)
    before = {name: tensor.clone() for name, tensor in training.learner.tapped.state_dict().items()}
    evaluated(training, training.clean)
    assert all(torch.equal(before[name], tensor) for name, tensor in training.learner.tapped.state_dict().items())
    assert all(parameter.grad is None for parameter in training.learner.tapped.parameters())


def test_untrained_heads_are_at_chance(tiny, build):
    training = build(tiny)
    found = evaluated(training, training.clean)
    assert all(0.15 < accuracy < 0.25 for draws in found.rla_TM for accuracy in draws)
    assert len(found.rla_T) == 2


def test_interrupted_evaluation_says_so(tiny, build):
    training = build(tiny)
    with pytest.raises(EvaluationInterruptedError):
        evaluate(
            training.learner.bare, training.heldout, training.routes.measuring(), training.prepare, "fp32", lambda: True
        )
