"""What the loaders' benchmark says of memory and host time, at a smaller scale."""

import loader_costs
import pytest
from measuring import in_fresh_process


@pytest.mark.long
def test_the_list_of_files_is_held_once_by_a_process_and_its_workers():
    """150 MB for ImageNet's 1,281,167 files are 117 bytes a file; the name alone takes 31, and the epoch's order 8."""
    num_files = 640_000  # so that some MB of copied pages, more or less, make little difference
    used = in_fresh_process(loader_costs.manifest_bytes, num_files, 2)
    assert 40 < used / num_files < 117


def test_host_costs_are_told_part_by_part():
    costs = loader_costs.host_costs(num_samples=2000, num_rows=256, repeats=3)
    parts = {"order", "index", "labels", "crops"}
    assert costs.keys() == parts | {"sum", "worker"}
    assert costs["sum"] == pytest.approx(sum(costs[name] for name in parts))
    assert min(costs.values()) > 0
