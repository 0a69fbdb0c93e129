"""A loader's state has one form."""

import pytest

from rlpheads.loaders.contract.loader import check_state


@pytest.mark.parametrize(
    "state", [{}, {"epoch": 1}, {"epoch": 1, "consumed": -2}, {"epoch": 1, "consumed": 2, "rng": 0}]
)
def test_a_state_of_another_form_is_refused(state):
    with pytest.raises(ValueError, match='"epoch": int, "consumed": int'):
        check_state(state)
