"""The hash is splitmix64, and the keys of named streams never change."""

import torch

from rlpheads.memorization.heads.hashing import key_from_name, splitmix64


def as_unsigned(words: torch.Tensor) -> list[int]:
    return [word % 2**64 for word in words.tolist()]


def test_published_outputs_of_splitmix64():
    """Those from seed 0, and from the greatest seeds by Python's integers."""
    first_three = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert as_unsigned(splitmix64(0, torch.arange(1, 4))) == first_three

    def finalise(state: int) -> int:
        z = state % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    for key in (2**63 - 1, -(2**63), -1):
        counters = [0, 1, 2, 2**40, -1]
        expected = [finalise(key + counter * 0x9E3779B97F4A7C15) for counter in counters]
        assert as_unsigned(splitmix64(key, torch.tensor(counters))) == expected


def test_keys_never_change_between_versions():
    """Pinned: labels and initial weights, which are files' contents, follow from them."""
    assert key_from_name("labels", 3, "train", 0) == 3213989615651709654
    assert key_from_name("heads", -5, 1, 2) == 2118649825551343811


def test_keys_do_not_run_the_parts_of_a_name_together():
    names = [("a", 1), ("a1",), ("a", 1, 0), ("a", 10), ("a", "1"), (1, "a")]
    keys = [key_from_name(*name) for name in names]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)
