"""Settings shared by every test: one thread, no network, nothing written outside the test's own folder."""

import os
from collections import Counter

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # set in the workers of pytest-xdist; a test that wants a width names it
os.environ["RLPHEADS_TILES"] = ""  # whatever tiles were measured on this machine, tests run with the usual ones

import pytest
import torch
from hypothesis import settings

pytest.register_assert_rewrite("kernel_problems", "real_runs")  # helpers whose failed assertions should show values
torch.set_num_threads(1)
settings.register_profile("rlpheads", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("rlpheads")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Put the files with the longest tests first, so that no worker is left with one of them at the end."""
    weights = Counter()
    for item in items:
        weights[item.path] += 5 * ("distributed" in item.keywords) + ("long" in item.keywords)
    items.sort(key=lambda item: -weights[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Note on the report of a wrong input's test of which kind the input is."""
    report = yield
    if (marker := item.get_closest_marker("wrong")) is not None:
        report.user_properties.append(("wrong", marker.args[0]))
    return report


def pytest_terminal_summary(terminalreporter):
    """Count the wrong inputs whose message is as promised, and the others."""
    reports = {name: terminalreporter.getreports(name) for name in ("passed", "failed")}
    kinds = {name: Counter(dict(report.user_properties).get("wrong") for report in reports[name]) for name in reports}
    counts = {kind: count for kind, count in kinds["passed"].items() if kind is not None}
    if counts:
        failed = sum(count for kind, count in kinds["failed"].items() if kind is not None)
        listed = ", ".join(f"{count} of kind {kind}" for kind, count in sorted(counts.items()))
        terminalreporter.write_line(
            f"wrong inputs: {sum(counts.values())} answered as promised ({listed}), {failed} not"
        )
