"""The logistic head: closed form, simulation and its cache."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest

from rlpheads.memorization.baselines.capacity import capacity
from rlpheads.memorization.baselines.head_only import least_squares_rla
from rlpheads.memorization.baselines.logistic_baseline import default_cache_dir, logistic_rla, simulate_logistic
from rlpheads.memorization.validation.closed_form_answers import LOGISTIC


@pytest.mark.parametrize(("alpha", "known"), LOGISTIC.items())
def test_two_labels_known_answers(alpha, known):
    accuracy, bits = known
    baseline = logistic_rla(2, alpha)
    assert baseline.accuracy == pytest.approx(accuracy, abs=6e-4)
    assert baseline.bits_per_parameter == pytest.approx(bits, abs=6e-4)
    assert baseline.bits_per_parameter == pytest.approx(alpha * baseline.bits_per_sample)


@pytest.mark.parametrize("alpha", [0.5, 1.9, 2.0])
def test_up_to_capacity_every_label_is_fitted(alpha):
    baseline = logistic_rla(2, alpha)
    assert baseline.accuracy == 1
    assert baseline.bits_per_sample == 1


@pytest.mark.long
def test_accuracy_and_bits_fall_all_the_way_from_capacity_to_many_samples():
    baselines = [logistic_rla(2, alpha) for alpha in 2 + np.geomspace(1e-3, 1e6, 40)]
    accuracies, bits = ([getattr(b, name) for b in baselines] for name in ("accuracy", "bits_per_sample"))
    assert all(a > b for a, b in pairwise(accuracies))
    assert all(a > b for a, b in pairwise(bits))
    assert baselines[-1].bits_per_parameter == pytest.approx(1 / (2 * math.log(2)), rel=1e-4)  # Wilks: ½ nat each


def test_with_many_samples_it_agrees_with_least_squares():
    assert logistic_rla(2, 1000.0).accuracy == pytest.approx(least_squares_rla(2, 1000.0), abs=1e-4)


def test_a_fitted_head_of_two_labels_is_near_the_closed_form():
    fits = [simulate_logistic(2, 1500, 300, seed) for seed in range(3)]
    limit = logistic_rla(2, 5)
    assert np.mean([fit.accuracy for fit in fits]) == pytest.approx(limit.accuracy, abs=0.03)
    assert np.mean([fit.bits_per_parameter for fit in fits]) == pytest.approx(limit.bits_per_parameter, abs=0.06)


def test_more_labels_are_simulated_once_and_read_from_the_cache(tmp_path):
    first = logistic_rla(5, 60.0, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    assert first.accuracy == pytest.approx(least_squares_rla(5, 60.0), abs=0.02)
    assert first.bits_per_parameter == pytest.approx(60 * first.bits_per_sample / 4)
    file.write_text(json.dumps({"accuracy": 0.5, "bits_per_sample": 1.0, "bits_per_parameter": 2.0}))
    assert logistic_rla(5, 60.0, cache_dir=tmp_path).accuracy == 0.5


@pytest.mark.parametrize("content", ["", "{", "[]", '{"accuracy": 1}', "\0\0"])
def test_a_damaged_cache_file_is_computed_again(tmp_path, content):
    (tmp_path / "logistic_v1_labels=3_alpha=200.json").write_text(content)
    assert logistic_rla(3, 200.0, cache_dir=tmp_path) == logistic_rla(3, 200.0, cache_dir=tmp_path / "fresh")


def test_below_their_capacity_more_labels_need_no_simulation(tmp_path):
    baseline = logistic_rla(100, 0.9 * capacity(100), cache_dir=tmp_path)
    assert baseline.accuracy == 1
    assert baseline.bits_per_sample == math.log2(100)
    assert not list(tmp_path.iterdir())


def test_the_cache_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RLPHEADS_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("RLPHEADS_CACHE")
    assert default_cache_dir().parts[-2:] == (".cache", "rlpheads")


def test_too_large_simulations_name_the_least_squares_baseline(tmp_path):
    with pytest.raises(ValueError, match="least-squares"):
        logistic_rla(10**5, 1e4, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="alpha"):
        logistic_rla(2, -1.0)
    with pytest.raises(ValueError, match="num_labels is 1"):
        logistic_rla(1, 3.0)
