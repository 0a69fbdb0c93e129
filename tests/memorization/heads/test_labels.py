"""Random labels: uniform, independent, and the same for every caller."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlpheads.memorization.heads.hashing import splitmix64
from rlpheads.memorization.heads.labels import label_key, label_table, random_labels


def as_unsigned(words: torch.Tensor) -> list[int]:
    return [word % 2**64 for word in words.tolist()]


def test_labels_never_change_between_versions():
    """Pinned: a run that is continued or audited later must find the labels that it was trained on."""
    table_MN = label_table(8, 10, num_draws=2, seed=0, split="train")
    assert table_MN.tolist() == [[7, 7, 6, 2, 2, 4, 8, 7], [9, 9, 3, 8, 7, 7, 4, 9]]
    assert table_MN.dtype == torch.int32
    assert label_table(4, 100_000, num_draws=1, seed=7, split="val").tolist() == [[17104, 21557, 6757, 64411]]
    balanced_MN = label_table(8, 3, num_draws=2, seed=0, split="train", balance="balanced")
    assert balanced_MN.tolist() == [[0, 0, 0, 2, 1, 2, 1, 1], [1, 1, 2, 0, 0, 0, 2, 1]]


@given(st.integers(2, 2**31), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
def test_label_is_the_hash_scaled_by_exact_arithmetic(num_labels, key, sample_id):
    sample_ids_N = torch.tensor([sample_id])
    label = int(random_labels(sample_ids_N, num_labels, key=key))
    assert label == as_unsigned(splitmix64(key, sample_ids_N))[0] * num_labels // 2**64


@given(st.integers(1, 300), st.integers(2, 50), st.integers(0, 5), st.integers(1, 100))
def test_more_samples_or_draws_change_no_label(num_samples, num_labels, seed, more):
    small_MN = label_table(num_samples, num_labels, num_draws=2, seed=seed, split="train")
    large_MN = label_table(num_samples + more, num_labels, num_draws=3, seed=seed, split="train")
    assert torch.equal(large_MN[:2, :num_samples], small_MN)


def test_any_subset_in_any_order_gets_the_same_labels():
    table_MN = label_table(1000, 7, num_draws=1, seed=3, split="train")
    sample_ids_N = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    chunks = [random_labels(chunk, 7, key=label_key(3, "train", 0)) for chunk in sample_ids_N.split(77)]
    assert torch.equal(torch.cat(chunks), table_MN[0, sample_ids_N])


@pytest.mark.parametrize("num_labels", [2, 3, 10, 1000])
def test_labels_are_uniform(num_labels):
    labels_N = label_table(100_000, num_labels, num_draws=1, seed=0, split="train")[0]
    assert stats.chisquare(torch.bincount(labels_N, minlength=num_labels).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"seed": 0, "split": "train", "draw": 0}, {"seed": 0, "split": "train", "draw": 1}),
        ({"seed": 0, "split": "train", "draw": 0}, {"seed": 0, "split": "val", "draw": 0}),
        ({"seed": 0, "split": "train", "draw": 0}, {"seed": 1, "split": "train", "draw": 0}),
        ({"seed": 0, "split": "train", "draw": 1}, {"seed": 1, "split": "train", "draw": 0}),
    ],
)
def test_draws_splits_and_seeds_are_independent(first, second):
    sample_ids_N = torch.arange(100_000)
    first_N, second_N = (random_labels(sample_ids_N, 5, key=label_key(**words)) for words in (first, second))
    contingency = torch.bincount(first_N.long() * 5 + second_N, minlength=25).reshape(5, 5)
    assert stats.chi2_contingency(contingency.numpy()).pvalue > 1e-3


def test_neighbours_are_independent():
    labels_N = label_table(100_001, 5, num_draws=1, seed=0, split="train")[0].long()
    contingency = torch.bincount(labels_N[1:] * 5 + labels_N[:-1], minlength=25).reshape(5, 5)
    assert stats.chi2_contingency(contingency.numpy()).pvalue > 1e-3


@given(st.integers(1, 500), st.integers(2, 60), st.integers(0, 3))
def test_balanced_hands_out_each_label_equally_often(num_samples, num_labels, seed):
    labels_MN = label_table(num_samples, num_labels, num_draws=2, seed=seed, split="train", balance="balanced")
    for labels_N in labels_MN:
        counts_K = torch.bincount(labels_N, minlength=num_labels)
        assert len(counts_K) == num_labels
        assert counts_K.max() - counts_K.min() <= 1


def test_balanced_draws_are_independent():
    labels_MN = label_table(50_000, 5, num_draws=2, seed=0, split="train", balance="balanced").long()
    contingency = torch.bincount(labels_MN[0] * 5 + labels_MN[1], minlength=25).reshape(5, 5)
    assert stats.chi2_contingency(contingency.numpy()).pvalue > 1e-3


def test_the_global_generator_is_not_touched():
    state = torch.get_rng_state()
    label_table(10, 3, num_draws=2, seed=0, split="train", balance="balanced")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_labels": 1}, "num_labels is 1"),
        ({"num_labels": 2**31 + 1}, "2147483649.*2\\*\\*31"),
        ({"num_draws": 0}, "num_draws is 0"),
        ({"balance": "balance"}, "'balance'.*nearest is 'balanced'"),
    ],
)
def test_bad_tables_are_refused(change, message):
    sizes = {"num_samples": 5, "num_labels": 3, "num_draws": 1, "seed": 0, "split": "train"}
    with pytest.raises(ValueError, match=message):
        label_table(**{**sizes, **change})
