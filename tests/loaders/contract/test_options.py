"""Options out of their range are refused."""

import pytest

from rlpheads.loaders.contract.options import LoaderOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"world_size": 0}, "world_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"on_error": "ignore"}, "on_error is 'ignore'; it must be one of raise, skip"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LoaderOptions(**options)
