"""Errors keep what they say on the way from a worker."""

import pickle

from rlpheads.loaders.contract.errors import ImageReadError


def test_the_error_survives_the_way_from_a_worker():
    error = ImageReadError(7, "/data/cat/\udcff.jpg", "the file is empty")
    again = pickle.loads(pickle.dumps(error))
    assert (again.index, again.path, again.reason) == (7, "/data/cat/\udcff.jpg", "the file is empty")
    assert str(again) == r"image 7 (/data/cat/\xff.jpg) cannot be read: the file is empty"
