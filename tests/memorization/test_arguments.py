"""What the room's public functions take: exact integers of any type, whole hits, fractions; and what they refuse."""

import math

import numpy as np
import pytest
import torch

from rlpheads.memorization.audit.audit_labels import draw_audit_labels, keyed_subset
from rlpheads.memorization.audit.excesses import label_excess, membership_excess
from rlpheads.memorization.baselines.capacity import capacity
from rlpheads.memorization.baselines.head_only import auto_labels, capacity_warning, least_squares_rla
from rlpheads.memorization.baselines.logistic_baseline import logistic_rla, simulate_logistic
from rlpheads.memorization.figures.rla_figures import References, plot_rla_by_depth
from rlpheads.memorization.heads.class_blocks import class_block_labels, class_block_loss
from rlpheads.memorization.heads.hashing import key_from_name, splitmix64
from rlpheads.memorization.heads.labels import label_key, label_table, random_labels
from rlpheads.memorization.heads.rlp_heads import RLPHeads
from rlpheads.memorization.measures import exact
from rlpheads.memorization.measures.calibration import CalibrationBins
from rlpheads.memorization.measures.canaries import canary_auc
from rlpheads.memorization.measures.intervals import (
    binomial_bounds,
    cluster_bootstrap,
    draw_interval,
    effective_wilson_interval,
    mcdiarmid_half_width,
    wilson_interval,
)
from rlpheads.memorization.measures.label_measures import (
    expected_calibration_error,
    margin_summary,
    rademacher_estimate,
    random_label_accuracy,
    stored_bits,
)
from rlpheads.memorization.measures.sample_dynamics import (
    dataset_map,
    first_learned_epoch,
    forgetting_events,
    learned_for_good_epoch,
    noisy_label_auc,
)
from rlpheads.memorization.measures.sample_scores import memorized_set, needed_draws, sample_scores
from rlpheads.memorization.probes.feature_blocks import GaussianFeatures
from rlpheads.memorization.probes.probe_heads import PROBES, LeastSquaresProbe
from rlpheads.memorization.quantiles import quantiles
from rlpheads.memorization.records.ledger import Ledger

VALUES_M = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
TABLE = {"num_samples": 10, "num_labels": 7, "num_draws": 2, "seed": 0, "split": "train"}


def heads(**change):
    return RLPHeads(**{"tap_dims": (6,), "num_labels": 4, "num_draws": 2, "seed": 3} | change)


INTEGERS = {  # each integer argument of each public function, as a function of it, with a value that it takes
    "label_table num_samples": (lambda x: label_table(**TABLE | {"num_samples": x}), 10),
    "label_table num_labels": (lambda x: label_table(**TABLE | {"num_labels": x}), 7),
    "label_table num_draws": (lambda x: label_table(**TABLE | {"num_draws": x}), 2),
    "label_table seed": (lambda x: label_table(**TABLE | {"seed": x}), 5),
    "label_key seed": (lambda x: label_key(x, "train", 0), 5),
    "label_key draw": (lambda x: label_key(5, "train", x), 1),
    "random_labels num_labels": (lambda x: random_labels(torch.arange(9), x, key=1), 9),
    "random_labels key": (lambda x: random_labels(torch.arange(9), 5, key=x), 77),
    "splitmix64 key": (lambda x: splitmix64(x, torch.arange(9)), 77),
    "key_from_name": (lambda x: key_from_name("heads", x), 3),
    "keyed_subset num_samples": (lambda x: keyed_subset(x, 3, 7), 9),
    "keyed_subset size": (lambda x: keyed_subset(9, x, 7), 3),
    "keyed_subset key": (lambda x: keyed_subset(9, 3, x), 7),
    "draw_audit_labels num_heldout": (lambda x: audit_labels(num_heldout=x), 5),
    "draw_audit_labels num_labels": (lambda x: audit_labels(num_labels=x), 4),
    "draw_audit_labels num_draws": (lambda x: audit_labels(num_draws=x), 4),
    "draw_audit_labels seed": (lambda x: audit_labels(seed=x), 2),
    "class_block_labels num_labels": (
        lambda x: class_block_labels(torch.tensor([[0, 1]]), torch.tensor([3, 4]), x),
        3,
    ),
    "RLPHeads num_labels": (lambda x: heads(num_labels=x).heads[0][0].weight, 4),
    "RLPHeads num_draws": (lambda x: heads(num_draws=x).heads[0][-1].weight, 2),
    "RLPHeads tap_dims": (lambda x: heads(tap_dims=(x,)).heads[0][0].weight, 6),
    "RLPHeads seed": (lambda x: heads(seed=x).heads[0][0].weight, 3),
    "RLPHeads num_blocks": (lambda x: heads(num_blocks=x).heads[0][0].weight, 2),
    "RLPHeads hidden": (lambda x: heads(hidden=x).layers[0][0].weight, 5),
    "Ledger num_samples": (lambda x: Ledger(x, 1, 1).tensors()["hit"], 4),
    "Ledger num_taps": (lambda x: Ledger(4, x, 1).tensors()["hit"], 2),
    "Ledger num_draws": (lambda x: Ledger(4, 1, x).tensors()["hit"], 2),
    "wilson_interval num_samples": (lambda x: wilson_interval(100, x).low, 100_000),
    "binomial_bounds num_samples": (lambda x: binomial_bounds(x, 10).low, 1000),
    "binomial_bounds num_labels": (lambda x: binomial_bounds(1000, x).low, 10),
    "cluster_bootstrap num_resamples": (lambda x: cluster_bootstrap(VALUES_M, num_resamples=x).low, 50),
    "cluster_bootstrap seed": (lambda x: cluster_bootstrap(VALUES_M, num_resamples=50, seed=x).low, 3),
    "mcdiarmid num_samples": (lambda x: mcdiarmid_half_width(x, 100, 3), 100_000),
    "mcdiarmid num_draws": (lambda x: mcdiarmid_half_width(100_000, x, 3), 100),
    "mcdiarmid num_labels": (lambda x: mcdiarmid_half_width(1000, 1, x), 3),
    "rademacher_estimate": (lambda x: rademacher_estimate(0.5, x), 100),
    "stored_bits num_labels": (lambda x: stored_bits(torch.ones(3), x, 5).per_head_parameter, 4),
    "stored_bits num_features": (lambda x: stored_bits(torch.ones(3), 4, x).per_head_parameter, 100),
    "stored_bits network": (
        lambda x: stored_bits(torch.ones(3), 4, 5, num_network_parameters=x).per_network_parameter,
        9,
    ),
    "calibration num_bins": (lambda x: expected_calibration_error(VALUES_M, torch.ones(3), num_bins=x), 5),
    "CalibrationBins.error": (lambda x: CalibrationBins().error(x), 5),
    "first_learned_epoch": (lambda x: first_learned_epoch(torch.ones(4, 3), x), 2),
    "sample_scores": (lambda x: sample_scores(torch.ones(2, 3), x).score_N, 5),
    "needed_draws num_samples": (lambda x: needed_draws(x, 10), 1000),
    "needed_draws num_labels": (lambda x: needed_draws(1000, x), 10),
    "needed_draws num_resolved": (lambda x: needed_draws(1000, 10, x), 3),
    "memorized_set": (lambda x: memorized_set(torch.ones(2, 3), x).p_value_N, 10),
    "constants": (exact.rademacher_complexity_of_constants, 10),
    "thresholds": (exact.threshold_predictions, 4),
    "separable num_samples": (lambda x: exact.separable_probability(x, 20), 40),
    "separable num_features": (lambda x: exact.separable_probability(40, x), 20),
    "GaussianFeatures": (lambda x: next(iter(GaussianFeatures(x, 2))), 4),
    "GaussianFeatures seed": (lambda x: next(iter(GaussianFeatures(4, 2, x))), 4),
    "probe num_labels": (lambda x: LeastSquaresProbe()(torch.eye(4), torch.tensor([[0, 1, 0, 1]]), x).accuracy_M, 2),
    "capacity": (capacity, 10),
    "least_squares_rla": (lambda x: least_squares_rla(x, 10.0), 10),
    "auto_labels num_samples": (lambda x: auto_labels(x, 100).num_labels, 100_000),
    "auto_labels num_features": (lambda x: auto_labels(100_000, x).num_labels, 100),
    "capacity_warning": (lambda x: capacity_warning(x, 100, 100), 10),
    "logistic_rla": (lambda x: logistic_rla(x, 3.0).accuracy, 2),
    "simulate_logistic num_samples": (lambda x: simulate_logistic(2, x, 2, 0).accuracy, 20),
    "simulate_logistic seed": (lambda x: simulate_logistic(2, 20, 2, x).accuracy, 1),
}


def audit_labels(**change):
    arguments = {"own_MN": torch.zeros(1, 6, dtype=torch.int32), "num_heldout": 5, "num_labels": 4, "num_draws": 4}
    return draw_audit_labels(**{"seed": 2} | arguments | change).non_members_FE


def same(first, second) -> bool:
    return torch.equal(torch.as_tensor(first), torch.as_tensor(second))


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_of_another_type_gives_the_same_result(name):
    call, value = INTEGERS[name]
    expected = call(value)
    for other in (np.int64(value), np.int32(value), torch.tensor(value)):
        found = call(other)
        assert found == expected if isinstance(expected, str) else same(found, expected)


@pytest.mark.parametrize("name", INTEGERS)
def test_what_is_no_integer_is_refused_with_what_was_given(name):
    call, value = INTEGERS[name]
    others = [float(value), np.float64(value), True, np.bool_(True), value + 0.5, math.nan, torch.tensor(2.0)]
    if name != "key_from_name":  # whose parts may be text
        others.append(str(value))
    for other in others:
        with pytest.raises(ValueError, match=r" is "):
            call(other)


@pytest.mark.parametrize("probe", list(PROBES.values())[1:])
def test_a_probes_sizes_are_integers(probe):
    with pytest.raises(ValueError, match="max_passes is 5.0"):
        probe(max_passes=5.0)


INTEGER_TENSORS = {
    "random_labels": lambda ids: random_labels(ids, 1000, key=label_key(0, "train", 0)),
    "splitmix64": lambda ids: splitmix64(5, ids),
    "class_block_labels labels": lambda labels: class_block_labels(labels[None], torch.tensor([2, 0, 1, 1, 0]), 5),
    "class_block_labels classes": lambda classes: class_block_labels(torch.zeros(1, 5, dtype=torch.int64), classes, 3),
    "draw_audit_labels": lambda labels: draw_audit_labels(labels[None], 5, 5, num_draws=4, seed=0).fresh_FN,
    "probe": lambda labels: LeastSquaresProbe()(torch.arange(10.0).view(5, 2), labels[None], 5).accuracy_M,
    "class_block_loss": lambda labels: (
        class_block_loss(torch.eye(5), torch.eye(15, 5), torch.zeros(15), labels, num_labels=5).cross_entropy_B
    ),
}
OTHER_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32)


@pytest.mark.parametrize("name", INTEGER_TENSORS)
def test_integer_tensors_of_any_width_give_the_same_and_others_are_refused(name):
    call, values = INTEGER_TENSORS[name], torch.arange(5)
    for dtype in OTHER_INTEGERS:
        assert same(call(values.to(dtype)), call(values))
    for dtype in (torch.float32, torch.float64, torch.bool, torch.bfloat16, torch.complex64):
        with pytest.raises(ValueError, match=f"has dtype {dtype}"):
            call(values.to(dtype))


def test_labels_of_int32_ids_are_those_of_int64():
    labels_N = random_labels(torch.arange(5, dtype=torch.int32), 1000, key=label_key(0, "train", 0))
    assert labels_N.tolist() == [709, 729, 661, 252, 202]


def test_labels_outside_their_range_are_refused():
    features_ND = torch.arange(8.0).view(4, 2)
    for label in (-1, 3):
        with pytest.raises(ValueError, match=f"holds {label} .*integers in \\[0, 3\\)"):
            LeastSquaresProbe()(features_ND, torch.tensor([[0, 1, 2, label]]), 3)
        with pytest.raises(ValueError, match=f"holds {label} "):
            class_block_labels(torch.tensor([[0, label]]), torch.tensor([0, 1]), 3)
    with pytest.raises(ValueError, match="classes_N holds -1"):
        class_block_labels(torch.tensor([[0, 1]]), torch.tensor([0, -1]), 3)


HITS = {  # what takes hits of 0 and 1, by what it does with a (3, 4) tensor of them
    "random_label_accuracy": random_label_accuracy,
    "seen_N": lambda hits: random_label_accuracy(torch.ones(4), hits[0]),
    "first_learned_epoch": first_learned_epoch,
    "learned_for_good_epoch": learned_for_good_epoch,
    "forgetting_events": forgetting_events,
    "dataset_map": lambda hits: dataset_map(torch.ones(3, 4), hits).correctness_N,
    "memorized_set": lambda hits: memorized_set(hits, 10).p_value_N,
    "calibration": lambda hits: expected_calibration_error(torch.full((4,), 0.5), hits[0]),
    "noisy_label_auc": lambda hits: noisy_label_auc(torch.arange(4.0), hits[0]),
}
FRACTIONS = {  # what takes averages of hits, or accuracies, in [0, 1]
    "sample_scores": lambda hits: sample_scores(hits, 10).score_N,
    "sample_scores of epochs": lambda hits: sample_scores(hits[:, None], 10).score_N,
    "rademacher_estimate": lambda accuracies: rademacher_estimate(accuracies, 10),
    "label_excess own": lambda accuracies: label_excess(accuracies[0], VALUES_M).value,
    "label_excess fresh": lambda accuracies: label_excess(VALUES_M, accuracies[0]).value,
    "membership_excess members": lambda accuracies: membership_excess(accuracies[0, :3], VALUES_M).value,
    "membership_excess held-out": lambda accuracies: membership_excess(VALUES_M, accuracies[0, :3]).value,
    "mean_e_value": lambda p: exact.mean_e_value(torch.stack([p[0, :2], 1 - p[0, :2]], 1)),
}
GIVEN = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1]])


def with_value(value: float) -> torch.Tensor:
    given = GIVEN.clone()
    given[0, 1] = value
    return given


@pytest.mark.parametrize("call", [*HITS.values(), *FRACTIONS.values()], ids=[*HITS, *FRACTIONS])
@pytest.mark.parametrize("value", [math.nan, 1.01, 35.0, -0.5, math.inf, -math.inf], ids=str)
def test_nan_percent_and_logits_are_refused_where_hits_belong(call, value):
    with pytest.raises(ValueError, match=r"must|holds"):
        call(with_value(value))


@pytest.mark.parametrize("call", HITS.values(), ids=HITS)
def test_probabilities_are_no_hits_and_any_dtype_of_hits_counts_alike(call):
    with pytest.raises(ValueError, match="0 or 1"):
        call(with_value(0.35))
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64):
        assert same(call(GIVEN.to(dtype)), call(GIVEN))


@pytest.mark.parametrize("call", FRACTIONS.values(), ids=FRACTIONS)
def test_averages_of_hits_are_taken_where_they_make_sense(call):
    call(with_value(0.35))


@pytest.mark.parametrize("hits", [math.nan, 101, -1, 0.35, 35.5, torch.tensor([3.0, math.nan])])
def test_wilson_refuses_what_is_no_count_of_hits(hits):
    with pytest.raises(ValueError, match="num_hits"):
        wilson_interval(hits, 100)


def test_wilson_of_an_effective_number_of_trials_takes_fractions_and_no_nan():
    assert effective_wilson_interval(35.5, 100).contains(0.355)
    for hits in (math.nan, -0.5, 100.5):
        with pytest.raises(ValueError, match="between 0 and"):
            effective_wilson_interval(hits, 100)


@pytest.mark.parametrize("make", [draw_interval, cluster_bootstrap])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_interval_across_draws_refuses_what_is_not_finite(make, value):
    with pytest.raises(ValueError, match=f"values holds {value}"):
        make(torch.tensor([0.1, value, 0.3]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stored_bits(torch.tensor([1.0, math.nan]), 4, 5), "NaN, or more than log2 4 = 2"),
        (lambda: stored_bits(torch.tensor([1.0, 7.0]), 4, 5), "NaN, or more than log2 4 = 2"),
        (lambda: margin_summary(torch.tensor([1.0, math.nan])), "margin_N holds nan"),
        (lambda: dataset_map(torch.tensor([[-2.0]]), torch.ones(1, 1)), "class_loss_EN holds -2.0"),
        (lambda: expected_calibration_error(torch.tensor([math.nan]), torch.ones(1)), "confidence_N must lie"),
        (lambda: noisy_label_auc(torch.tensor([math.nan, 1.0]), torch.tensor([True, False])), "score_N holds NaN"),
        (lambda: canary_auc(torch.tensor([math.nan]), torch.ones(3)), "no NaN"),
        (lambda: canary_auc(torch.ones(3), torch.ones(3), torch.arange(2)), "image_P has shape"),
        (lambda: exact.rademacher_complexity(torch.tensor([[1.0, math.nan]])), "predictions_FN holds nan"),
        (lambda: exact.mean_e_value(torch.full((2, 3), 0.5)), "must sum to 1"),
        (lambda: quantiles(torch.ones(3), [50.0]), "levels in"),
        (lambda: LeastSquaresProbe()(torch.tensor([[1.0], [math.nan]]), torch.tensor([[0, 1]]), 2), "NaN or infinity"),
        (lambda: plot_rla_by_depth("x", [0], {"clean": [[35.0]]}, References(10)), "fractions, not percent"),
        (lambda: wilson_interval(1, 10, level="0.95"), "level is '0.95'"),
        (lambda: wilson_interval(1, 10, level=95), "level is 95"),
        (lambda: needed_draws(10, 10, rate=math.nan), "rate is nan"),
        (lambda: least_squares_rla(10, "3"), "alpha.* is '3'"),
        (lambda: label_key(0, 1, 0), "split is 1"),
        (lambda: random_labels(torch.arange(3), 5, key=2**63), "signed 64-bit"),
        (lambda: random_labels(torch.arange(3), 1, key=0), "num_labels is 1"),
        (lambda: random_labels(torch.arange(3), 2**31 + 1, key=0), "2147483649"),
        (lambda: heads(dropout=1.0), "dropout is 1.0"),
        (
            lambda: class_block_loss(
                torch.eye(2), torch.eye(5, 2), torch.zeros(5), torch.zeros(2).long(), num_labels=2
            ),
            "5",
        ),
    ],
)
def test_what_no_function_can_mean_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
