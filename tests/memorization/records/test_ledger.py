"""The per-sample record in memory: what is written, merged over ranks and summarised."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ledger_batches import NUM_DRAWS, NUM_SAMPLES, TAPS, batch_of, new_ledger
from torch._subclasses.fake_tensor import FakeTensorMode

from rlpheads.memorization.measures.label_measures import margin_summary
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import SEEN, SKIPPED, UNSEEN


def test_quantiles_of_the_margin_are_those_of_the_samples_seen():
    ledger, batch = new_ledger(), batch_of([4, 0, 9, 2])
    assert ledger.label_margins_QTM([0.05, 0.5]).shape == (2, len(TAPS), NUM_DRAWS)
    assert ledger.label_margins_QTM([0.5]).isnan().all()
    ledger.record(**batch)
    expected = margin_summary(batch["margin_TMB"], levels=(0.05, 0.5)).quantiles
    assert torch.equal(ledger.label_margins_QTM([0.05, 0.5]), expected)


def assert_same(first: Ledger, second: Ledger) -> None:
    for name, values in first.tensors().items():
        assert torch.equal(values, second.tensors()[name]), name


def test_a_row_holds_what_was_recorded_of_its_sample():
    ledger, batch = new_ledger(), batch_of([4, 0, 9])
    ledger.record(**batch)
    rows = ledger.tensors()
    assert rows["status"].tolist() == [SEEN if i in (0, 4, 9) else UNSEEN for i in range(NUM_SAMPLES)]
    assert rows["count"].tolist() == [int(i in (0, 4, 9)) for i in range(NUM_SAMPLES)]
    assert torch.equal(rows["target"][[4, 0, 9]], batch["targets_B"])
    assert torch.equal(rows["class_loss"][[4, 0, 9]], batch["class_loss_B"])
    assert torch.equal(rows["class_hit"][[4, 0, 9]].bool(), batch["class_hit_B"])
    for name in ("hit", "bits", "margin"):
        recorded_TMB = rows[name][[4, 0, 9]].permute(1, 2, 0)
        assert torch.equal(recorded_TMB.to(batch[f"{name}_TMB"].dtype), batch[f"{name}_TMB"])


@given(st.permutations(range(NUM_SAMPLES)), st.lists(st.integers(0, NUM_SAMPLES), max_size=4))
def test_the_ledger_does_not_depend_on_order_or_micro_batches(order, cuts):
    whole, parts = new_ledger(), new_ledger()
    whole.record(**batch_of(list(range(NUM_SAMPLES))))
    edges = [0, *sorted(cuts), NUM_SAMPLES]
    for first, last in pairwise(edges):
        parts.record(**batch_of(list(order)[first:last]))
    assert_same(whole, parts)


def test_padding_rows_leave_no_trace():
    plain, padded = new_ledger(), new_ledger()
    plain.record(**batch_of([2, 10]))
    batch = batch_of([2, -1, 10, -1])
    for name in ("class_loss_B", "bits_TMB", "margin_TMB"):
        batch[name][..., [1, 3]] = float("nan")
    padded.record(**batch)
    assert_same(plain, padded)
    full = new_ledger()
    full.record(**batch_of([2, 10]), may_have_padding=False)
    assert_same(plain, full)
    assert padded.num_seen == 2


def test_a_second_visit_overwrites_and_is_counted():
    ledger, last = new_ledger(), new_ledger()
    ledger.record(**batch_of([1, 2], seed=0))
    ledger.record(**batch_of([2, 3], seed=1))
    last.record(**batch_of([1], seed=0))
    last.record(**batch_of([2, 3], seed=1))
    assert ledger.tensors()["count"][:4].tolist() == [0, 1, 2, 1]
    assert torch.equal(ledger.tensors()["bits"], last.tensors()["bits"])
    assert ledger.num_seen == 3


def test_skipped_rows_differ_from_unseen_ones_and_never_hide_a_record():
    ledger = new_ledger()
    ledger.record(**batch_of([1]))
    ledger.skip(torch.tensor([1, 2, -1]))
    assert ledger.tensors()["status"][:4].tolist() == [UNSEEN, SEEN, SKIPPED, UNSEEN]
    ledger.record(**batch_of([2]))
    assert ledger.tensors()["status"][2] == SEEN


@given(st.lists(st.integers(0, 2), min_size=NUM_SAMPLES, max_size=NUM_SAMPLES))
def test_the_sum_over_ranks_is_the_ledger_of_one_rank(rank_of_sample):
    single, ranks = new_ledger(), [new_ledger() for _ in range(3)]
    for sample, rank in enumerate(rank_of_sample):
        single.record(**batch_of([sample]))
        ranks[rank].record(**batch_of([sample, -1]))
    merged = ranks[0]
    for name, values in merged.tensors().items():
        for other in ranks[1:]:
            values += other.tensors()[name]
    assert_same(single, merged)


def test_loading_in_place_restores_the_ledger_and_reset_empties_it():
    ledger, restored = new_ledger(), new_ledger()
    ledger.record(**batch_of([1, 5]))
    for name, values in restored.tensors().items():
        values.copy_(ledger.tensors()[name])
    assert_same(ledger, restored)
    restored.reset()
    assert_same(restored, new_ledger())


def test_accuracies_and_bits_are_over_the_samples_seen():
    ledger, index = new_ledger(), [0, 3, 4, 8]
    batch = batch_of(index)
    ledger.record(**batch)
    ledger.skip(torch.tensor([7]))
    torch.testing.assert_close(ledger.label_accuracy_TM, batch["hit_TMB"].double().mean(-1))
    torch.testing.assert_close(ledger.label_bits_TM, batch["bits_TMB"].double().sum(-1))
    assert ledger.class_accuracy == pytest.approx(batch["class_hit_B"].double().mean().item())
    assert ledger.class_loss == pytest.approx(batch["class_loss_B"].double().mean().item())
    assert torch.isnan(new_ledger().label_accuracy_TM).all()


def test_recording_reads_nothing_back_from_the_device():
    """Fake tensors have no values: any read of one, or a branch on one, raises."""
    batch = batch_of([4, -1, 9])
    with FakeTensorMode() as mode:
        ledger = new_ledger()
        ledger.record(**{name: mode.from_tensor(values) for name, values in batch.items()})
        ledger.skip(mode.from_tensor(batch["index_B"]))
        ledger.reset()


def test_losses_with_a_graph_are_recorded_without_it():
    ledger, batch = new_ledger(), batch_of([4])
    ledger.record(**{**batch, "class_loss_B": batch["class_loss_B"].requires_grad_()})
    assert not ledger.tensors()["class_loss"].requires_grad


def test_a_batch_without_its_heads_is_refused():
    batch = batch_of([4])
    del batch["bits_TMB"]
    with pytest.raises(ValueError, match="3 taps, but bits is missing"):
        new_ledger().record(**batch)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="must be an integer of at least"):
        Ledger(*sizes)


def test_rows_of_a_checkpoint_that_lacks_predictions_are_not_known():
    ledger = new_ledger()
    ledger.record(**batch_of([1, 5]))
    ledger.forget(["predicted", "confidence"])
    rows = ledger.tensors()
    assert rows["predicted"].tolist() == [-1 if sample in (1, 5) else 0 for sample in range(NUM_SAMPLES)]
    assert rows["confidence"].isnan().nonzero().flatten().tolist() == [1, 5]


def test_a_repeat_raises_the_count_alone_and_is_retracted_with_the_first():
    """Two ranks that hold two repeats each: the sum of their ledgers has the rows of the first."""
    ranks, merged = [new_ledger(), new_ledger()], new_ledger()
    firsts, repeats = batch_of([4, 0]), batch_of([0, 4])
    ranks[0].record(**firsts, counts_only_B=torch.tensor([False, False]))
    ranks[1].record(**repeats, counts_only_B=torch.tensor([True, True]))
    merged.record(**firsts)
    merged.tensors()["count"].mul_(2)
    for name, values in merged.tensors().items():
        assert torch.equal(sum(rank.tensors()[name] for rank in ranks), values), name
    ranks[0].retract(firsts["index_B"], torch.tensor([True, True]))
    ranks[1].retract(repeats["index_B"], torch.tensor([False, False]))
    for name, values in merged.tensors().items():
        found = sum(rank.tensors()[name] for rank in ranks)
        assert found[[0, 4]].unique().tolist() == [SKIPPED if name == "status" else 0], name
        assert found.count_nonzero() == (2 if name == "status" else 0)
        assert values.shape == found.shape
