"""The record of networks: what is missing, what was added, and files that are damaged or of other networks."""

from dataclasses import replace

import pytest
import torch

from rlpheads.engine.retraining.stacked_networks import RetrainingError
from rlpheads.engine.retraining.subset_training import SubsetNetworks
from rlpheads.engine.retraining.truth_record import TruthIdentity, TruthRecord

IDENTITY = TruthIdentity("f" * 64, 0, 0.7)


def networks(first: int, count: int, num_samples: int = 13) -> SubsetNetworks:
    generator = torch.Generator().manual_seed(first)
    inside, hit = (torch.rand(count, num_samples, generator=generator) < 0.5 for _ in range(2))
    return SubsetNetworks(first, inside, hit, torch.rand(count, num_samples, generator=generator).half())


def test_groups_are_added_in_any_order_and_the_rest_is_missing(tmp_path):
    record = TruthRecord(tmp_path / "truth", IDENTITY, 13)
    assert record.missing(7, 3) == [range(3), range(3, 6), range(6, 7)]
    record.add(networks(4, 2))
    record.add(networks(0, 3))
    assert record.missing(7, 3) == [range(3, 4), range(6, 7)]
    assert record.missing(3, 3) == []
    found = record.read()
    for name in ("inside_GN", "hit_GN", "loss_GN"):
        assert torch.equal(
            getattr(found, name), torch.cat([getattr(networks(0, 3), name), getattr(networks(4, 2), name)])
        )
    assert [path.suffix for path in (tmp_path / "truth").iterdir()] == [".npz", ".npz"]


def test_no_networks_are_told(tmp_path):
    with pytest.raises(RetrainingError, match="holds no networks yet"):
        TruthRecord(tmp_path, IDENTITY, 13).read()


@pytest.mark.wrong("path")
@pytest.mark.parametrize("keep", [0, 10, -5])
def test_a_damaged_file_is_named(tmp_path, keep):
    record = TruthRecord(tmp_path, IDENTITY, 13)
    record.add(networks(0, 3))
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RetrainingError, match=f"{path.name} is damaged"):
        record.read()


@pytest.mark.wrong("path")
def test_networks_of_another_kind_are_not_counted(tmp_path):
    TruthRecord(tmp_path, IDENTITY, 13).add(networks(0, 3))
    with pytest.raises(RetrainingError, match="give --fraction as then"):
        TruthRecord(tmp_path, replace(IDENTITY, fraction=0.5), 13).read()
    with pytest.raises(RetrainingError, match="its arrays are not"):
        TruthRecord(tmp_path, IDENTITY, 14).read()
