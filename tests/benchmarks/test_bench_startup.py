"""The benchmark of a start: a ratio stands beside its interval."""

import bench_startup


def test_the_ratio_of_a_start_has_its_interval() -> None:
    starts = {bench_startup.IMPORTS: [2.0] * 7, "plain python": [1.8, 1.9, 2.0, 2.1, 2.2, 2.3, 2.4]}
    seconds = {name: [{"cpu": each, "wall": each} for each in costs] for name, costs in starts.items()}
    said = bench_startup.lines(seconds)[1]
    assert "1.05 [0.95, 1.15] times the imports" in said  # the second least and second most of seven
