"""z-scores of loss and gradient norms: what stands out, what does not, and the same after a resume."""

import json
import random

import pytest

from rlpheads.engine.gauges.spikes import SpikeDetector


def noisy(steps: int, level: float = 2.0, spread: float = 0.1, seed: int = 0) -> list[dict[str, float]]:
    generator = random.Random(seed)
    return [{"class_loss": generator.gauss(level, spread)} for _ in range(steps)]


def test_noise_is_no_spike_and_a_jump_is_one():
    detector = SpikeDetector(span=100, threshold=10)
    assert not [spike for figures in noisy(1000) for spike in detector.take(figures)]
    (spike,) = detector.take({"class_loss": 4.0})
    assert (spike.name, spike.value) == ("class_loss", 4.0)
    assert (spike.mean, spike.score) == (pytest.approx(2.0, abs=0.05), pytest.approx(20, rel=0.3))
    assert detector.take({"class_loss": 4.0}), "a spike hides the next one"


def test_falling_figures_and_short_histories_are_no_spikes():
    detector = SpikeDetector(span=100, threshold=10)
    assert not [spike for value in (1.0, 50.0, 2.0) for spike in detector.take({"class_loss": value})]
    falling = SpikeDetector(span=100, threshold=10)
    assert not [spike for step in range(300) for spike in falling.take({"class_loss": 5 / (1 + step)})]
    assert not falling.take({"class_loss": -100.0})


def test_another_level_is_soon_at_home():
    detector = SpikeDetector(span=20, threshold=10)
    for figures in noisy(100):
        detector.take(figures)
    after = [bool(detector.take(figures)) for figures in noisy(100, level=6.0, seed=1)]
    assert after[0]
    assert not any(after[40:])


def test_scores_are_the_same_after_a_resume():
    whole, first, second = (SpikeDetector(span=50, threshold=2) for _ in range(3))
    figures = noisy(200)
    expected = [whole.take(each) for each in figures]
    found = [first.take(each) for each in figures[:77]]
    second.load(json.loads(json.dumps(first.state())))
    assert found + [second.take(each) for each in figures[77:]] == expected
    assert any(expected)
