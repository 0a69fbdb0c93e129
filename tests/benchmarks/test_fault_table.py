"""The table of faults: each row's test is there, so that `make faults` has something to run."""

from collections.abc import Iterator
from pathlib import Path

import fault_table
import pytest
import yaml

TESTS = [row["test"] for row in yaml.safe_load(fault_table.ROWS.read_text())]


def names_in(parent: pytest.Collector, file: Path) -> Iterator[str]:
    """Yield the names of a file's tests, each with the id of its parameters."""
    module: pytest.Module = pytest.Module.from_parent(parent, path=file)
    for item in module.collect():
        assert isinstance(item, pytest.Function), item
        yield item.name


@pytest.mark.long
def test_every_row_names_a_test_that_is_there(request):
    there = {
        f"{file}::{name}"
        for file in {test.partition("::")[0] for test in TESTS}
        for name in names_in(request.node.parent, fault_table.ROOT / file)
    }
    assert sorted(set(TESTS) - there) == []


def test_no_test_is_in_two_rows():
    assert len(TESTS) == len(set(TESTS))
