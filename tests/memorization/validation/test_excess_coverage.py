"""The simulation that measures the coverage of the audit's intervals."""

import numpy as np
import pytest

from rlpheads.memorization.audit.excesses import label_excess
from rlpheads.memorization.validation import excess_coverage


@pytest.mark.long
def test_the_excesses_cover_in_simulated_audits(monkeypatch):
    """400 audits each; 2,000 are in the table of known answers. The error of the share is .011."""
    monkeypatch.setattr(excess_coverage, "NUM_CASES", 400)
    monkeypatch.setattr(excess_coverage, "NUM_FEATURE_SETS", 2)
    covered, excess = excess_coverage.label_excess_coverage(strength=1.0, num_own=1, num_fresh=8)
    assert 0.91 <= covered <= 0.985
    assert excess > 0.4
    covered, excess = excess_coverage.membership_excess_coverage(unevenness=1.0, num_fresh=6)
    assert 0.91 <= covered <= 0.985
    assert abs(excess) > 0.01


@pytest.mark.long
def test_the_coverage_simulation_can_fail():
    """Negative control: the interval of a label excess is none for labels that were never drawn (it is for its own)."""
    simulation = next(excess_coverage.simulate_audits(num_own=1, num_fresh=8, seed=0))
    excesses = [label_excess(draws_F[:1], draws_F[1:]) for draws_F in simulation.fresh_CF]
    covered = np.mean([excess.low <= 0 <= excess.high for excess in excesses])
    assert covered < 0.8
