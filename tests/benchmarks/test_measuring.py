"""The benchmarks' common tools: they measure what they say, and a broken-off run goes on."""

import time

import measuring
import pytest
import torch
from scipy.stats import binom


def test_contenders_take_turns_and_are_timed_one_by_one() -> None:
    calls = []

    def contender(name: str, seconds: float):
        def call() -> None:
            calls.append(name)
            time.sleep(seconds)

        return call

    seconds = measuring.interleave({"slow": contender("slow", 0.03), "fast": contender("fast", 0.0)}, 3, warmup=1)
    assert calls == ["fast", "slow", "slow", "fast", "fast", "slow", "slow", "fast"]
    assert [len(times) for times in seconds.values()] == [3, 3]
    assert min(seconds["slow"]) >= 0.03
    assert max(seconds["fast"]) < 0.03


def test_ratio_pairs_the_times_of_a_round() -> None:
    assert measuring.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 2.0]) == 2.0  # medians alone would give 4/2 as well
    assert measuring.ratio([1.0, 30.0, 30.0], [1.0, 10.0, 30.0]) == 1.0  # and here 30/10


def test_interval_of_the_median_is_that_of_the_binomial() -> None:
    """Of 20 values the 6th to the 15th, as tables of the sign test have it: of five all of them are too few."""
    assert measuring.ratio_interval([5.0, 2.0, 4.0, 3.0, 1.0], [1.0] * 5) == (1.0, 5.0)
    assert measuring.ratio_interval([float(n) for n in range(1, 21)], [1.0] * 20) == (6.0, 15.0)
    for count in range(6, 200):
        outside = measuring.values_outside(count)
        assert 2 * binom.cdf(outside, count, 0.5) <= 0.05 < 2 * binom.cdf(outside + 1, count, 0.5)


def touch_and_free(mebibytes: int) -> int:
    return measuring.peak_extra_bytes(lambda: torch.ones(mebibytes * 2**18).sum())


@pytest.mark.long
@pytest.mark.parametrize("mebibytes", [40, 200])
def test_peak_memory_counts_what_was_freed_again(mebibytes: int) -> None:
    extra = measuring.in_fresh_process(touch_and_free, mebibytes)
    assert mebibytes * 2**20 <= extra < (mebibytes + 24) * 2**20


def test_a_measured_case_is_not_measured_again(tmp_path) -> None:
    results = measuring.Results("theme", "cpu", tmp_path)
    first = results.measure(lambda: {"seconds": [1.0, 2.0]}, rows=64, name="ours")
    again = measuring.Results("theme", "cpu", tmp_path)
    assert again.measure(lambda: pytest.fail("measured twice"), rows=64, name="ours") == first
    assert again.measure(lambda: {"seconds": [3.0]}, rows=128, name="ours")["seconds"] == [3.0]
    assert [line["case"]["rows"] for line in again.lines] == [64, 128]
    assert (tmp_path / "environment.json").exists()


def test_another_command_overwrites_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    folders = []
    for command in (["bench.py"], ["bench.py", "--quick"], ["bench.py"], ["bench.py", "--quick"]):
        monkeypatch.setattr("sys.argv", command)
        folders.append(measuring.Results("theme", "cpu").folder)
    assert folders[0] == folders[2] != folders[1] == folders[3]
    assert folders[1].name == f"{folders[0].name}_2"


def test_lines_of_another_commit_count_for_nothing(tmp_path) -> None:
    results = measuring.Results("theme", "cpu", tmp_path)
    results.measure(lambda: {"seconds": [1.0]}, rows=64)
    text = (tmp_path / "runs.jsonl").read_text()
    (tmp_path / "runs.jsonl").write_text(text.replace('"commit": ', '"commit": "other", "was": '))
    assert measuring.Results("theme", "cpu", tmp_path).find(rows=64) is None
