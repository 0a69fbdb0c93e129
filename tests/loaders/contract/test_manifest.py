"""A manifest lists samples in a fixed order, cheaply, and its fingerprint changes when they do."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.loaders.contract.manifest import Manifest

NAMES = [b"cat/1.jpg", b"cat/2.jpg", b"dog/1.jpg"]


def make(**changes) -> Manifest:
    columns = {"names": NAMES, "targets": [0, 0, 1], "sizes": [10, 20, 30], "classes": ("cat", "dog"), "split": "train"}
    return Manifest.from_columns(**(columns | {"root": None} | changes))


@given(
    names=st.lists(st.binary(min_size=1, max_size=9).filter(lambda name: b"\0" not in name), min_size=1, max_size=20)
)
def test_names_come_back_whatever_their_bytes(names):
    manifest = make(names=names, targets=[0] * len(names), sizes=[1] * len(names))
    assert manifest.names() == names
    assert [manifest.name(index).encode("utf-8", "surrogateescape") for index in range(len(names))] == names


@given(keep=st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_selection_is_the_manifest_of_the_kept_samples(keep):
    chosen = [index for index in range(3) if keep[index]]
    whole = make()
    expected = make(
        names=[NAMES[i] for i in chosen], targets=whole.targets[chosen], sizes=whole.sizes[chosen], split="part"
    )
    selected = whole.select(np.array(keep), "part")
    assert selected == expected
    assert selected.names() == expected.names()


@pytest.mark.parametrize(
    "changes",
    [
        {"names": [b"cat/1.jpg", b"cat/3.jpg", b"dog/1.jpg"]},
        {"names": [b"cat/1.jpgc", b"at/2.jpg", b"dog/1.jpg"]},
        {"sizes": [10, 20, 31]},
        {"targets": [0, 1, 1]},
        {"classes": ("cat", "fox")},
        {"classes": ("catd", "og")},
        {"split": "val"},
        {"names": NAMES[:2], "targets": [0, 0], "sizes": [10, 20]},
    ],
)
def test_the_fingerprint_tells_every_change(changes):
    assert make(**changes) != make()
    assert make(**changes).fingerprint != make().fingerprint


def test_the_fingerprint_does_not_depend_on_the_root(tmp_path):
    assert make(root=tmp_path) == make()
    assert hash(make(root=tmp_path)) == hash(make())
    assert make() != "train"


def test_the_fingerprint_never_changes_between_versions():
    """Pinned: checkpoints and ledgers of earlier versions carry it."""
    assert make().fingerprint == "3e533c443c741922f0bfe480d554bb4312b867e68302ff9dd593280c5b385cd1"


def test_a_large_manifest_is_a_few_arrays():
    count = 100_000
    names = [f"n{index // 1000:08d}/image_{index:08d}.jpg".encode() for index in range(count)]
    manifest = make(names=names, targets=np.zeros(count), sizes=np.ones(count))
    pickled = pickle.dumps(manifest, protocol=pickle.HIGHEST_PROTOCOL)
    assert len(pickled) < sum(map(len, names)) + 24 * count + 10_000
    assert pickle.loads(pickled) == manifest


@pytest.mark.parametrize("index", [-1, 3])
def test_padding_has_no_name(index):
    with pytest.raises(IndexError, match=f"index {index} is not in 0..2"):
        make().name(index)


def test_samples_that_are_not_files_have_no_path():
    with pytest.raises(ValueError, match=r"cat/2\.jpg has no path"):
        make().path(1)
