"""The table of what sharded heads cost: every theme's lines, from what was measured."""

import bench_sharded_heads
import pytest


@pytest.mark.parametrize("theme", bench_sharded_heads.CASES)
def test_lines_of_every_theme(theme):
    (case, *_) = bench_sharded_heads.CASES[theme]
    seconds = {shard: [0.5, 0.4, 0.6] for shard in ("ddp", "none", "class")}
    steps = {"seconds": seconds, "ratios": {"ddp": 1.0, "none": 0.93, "class": 0.33}}
    measured = {"sent": 110, "formula": 100, "errors": {"values": 1e-7}, "losses": [2.0, 1.5]}
    rows = [*bench_sharded_heads.rows_of(case, steps if theme == "step" else measured)]
    rows += bench_sharded_heads.told_of(case, steps if theme == "step" else measured)
    assert {len(row) for row in rows} == {7}
    words = "\n".join(" ".join(row) for row in rows)
    assert ("0.330 of ddp's" if theme == "step" else "1.1000") in words
    assert ("2.000, 1.500" in words) == (theme != "step")
