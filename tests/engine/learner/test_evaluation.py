"""Evaluation sees every sample once and leaves the weights alone."""

from dataclasses import replace

import pytest
import torch

from rlpheads.engine.learner.evaluation import EvaluationInterruptedError, _among_five, evaluate
from rlpheads.engine.report.evaluation_summary import summarize_evaluation
from rlpheads.loaders.contract.batch import PADDING, Batch
from rlpheads.memorization.measures.label_measures import expected_calibration_error, margin_summary


def evaluated(training, split, interrupted=lambda: False):
    training.learner.train(False)
    routes, prepare = training.step.routes.measuring(), training.preparation.for_evaluation
    totals = evaluate(training.learner.bare, split, routes, prepare, "fp32", interrupted)
    return summarize_evaluation(split, totals)


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [32, 360, 7])
def test_every_sample_counts_once_whatever_the_batch(tiny, build, batch_size):
    training = build(tiny, eval=replace(tiny.eval, batch_size=batch_size))
    found = evaluated(training, training.splits.heldout)
    assert found.num_samples == training.run.sources.heldout.manifest.num_samples
    counts = training.splits.heldout.ledger.tensors()["count"]
    assert torch.equal(counts, torch.ones_like(counts))


def test_figures_do_not_depend_on_the_batch_or_on_what_was_evaluated_before(tiny, build):
    training, other = build(tiny), build(tiny, eval=replace(tiny.eval, batch_size=50))
    first = evaluated(training, training.splits.heldout)
    again = evaluated(training, training.splits.heldout)
    different = evaluated(other, other.splits.heldout)
    assert first == again
    assert first.loss == pytest.approx(different.loss, rel=1e-6)
    assert first.rla_TM == different.rla_TM


def test_clean_and_heldout_have_their_own_labels(tiny, build):
    training = build(tiny)
    length = training.splits.heldout.table_MN.shape[1]
    assert not torch.equal(training.splits.clean.table_MN[:, :length], training.splits.heldout.table_MN)


@pytest.mark.long
@torch.no_grad()
def test_top5_is_the_share_of_samples_with_fewer_than_five_likelier_classes(tiny, build):
    training, other = build(tiny), build(tiny, eval=replace(tiny.eval, batch_size=50))
    found = evaluated(training, training.splits.heldout)
    assert found.top5 == evaluated(other, other.splits.heldout).top5
    training.splits.heldout.loader.set_epoch(0)
    hits = 0
    for delivered in training.splits.heldout.loader:
        batch = training.preparation.for_evaluation(delivered)
        logits, _ = training.learner.tapped(batch.images)
        likelier = (logits > logits.gather(1, batch.targets[:, None])).sum(1)
        hits += int((likelier < 5)[batch.index >= 0].sum())
    assert found.top5 == hits / found.num_samples
    assert found.top1 < found.top5 < 1


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_calibration_error_is_that_of_the_softmax_over_the_samples_themselves(tiny, build, loss):
    """Whatever loss is trained; batches of 50 leave rows of padding, which must not count."""
    training = build(tiny, eval=replace(tiny.eval, batch_size=50), model=replace(tiny.model, loss=loss))
    training.splits.heldout.loader.set_epoch(0)
    confidence, hits = [], []
    training.learner.train(False)
    for delivered in training.splits.heldout.loader:
        batch = training.preparation.for_evaluation(delivered)
        confidence_B, predicted_B = training.learner.tapped(batch.images)[0].softmax(1).max(1)
        confidence.append(confidence_B[batch.index >= 0])
        hits.append((predicted_B == batch.targets)[batch.index >= 0])
    assert len(torch.cat(hits)) == 360
    expected = float(expected_calibration_error(torch.cat(confidence), torch.cat(hits)))
    assert expected > 0.01
    assert evaluated(training, training.splits.heldout).ece == pytest.approx(expected, abs=1e-12)


@pytest.mark.long
def test_margins_are_quantiles_over_the_samples_of_each_tap_and_draw(tiny, build):
    training = build(tiny)
    found = evaluated(training, training.splits.heldout)
    margin_TMN = training.splits.heldout.ledger.tensors()["margin"].permute(1, 2, 0)
    summary = margin_summary(margin_TMN, levels=(0.05, 0.5, 0.95))
    assert list(found.margins_TM) == ["p05", "median", "p95"]
    assert list(found.margins_TM.values()) == summary.quantiles.tolist()
    assert found.of_draws(slice(1)).margins_T["median"] == summary.quantiles[1, :, 0].tolist()


def test_few_classes_are_all_among_the_five_likeliest():
    batch = Batch(torch.zeros(4, 3, 1, 1), torch.tensor([0, 1, 2, 0]), torch.tensor([5, 3, 7, PADDING]), 4)
    assert _among_five(torch.randn(4, 3), batch) == 3


@pytest.mark.long
def test_weights_and_gradients_stay(tiny, build):
    training = build(tiny)
    before = {name: tensor.clone() for name, tensor in training.learner.tapped.state_dict().items()}
    evaluated(training, training.splits.clean)
    assert all(torch.equal(before[name], tensor) for name, tensor in training.learner.tapped.state_dict().items())
    assert all(parameter.grad is None for parameter in training.learner.tapped.parameters())


@pytest.mark.long
def test_untrained_heads_are_at_chance(tiny, build):
    training = build(tiny)
    found = evaluated(training, training.splits.clean)
    assert all(0.15 < accuracy < 0.25 for draws in found.rla_TM for accuracy in draws)
    assert len(found.rla_T) == 2


def test_interrupted_evaluation_says_so(tiny, build):
    training = build(tiny)
    with pytest.raises(EvaluationInterruptedError):
        evaluate(
            training.learner.bare,
            training.splits.heldout,
            training.step.routes.measuring(),
            training.preparation.for_evaluation,
            "fp32",
            lambda: True,
        )
