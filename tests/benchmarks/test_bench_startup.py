"""The benchmark of a start: a ratio stands beside its interval."""

import bench_startup


def test_the_ratio_of_a_start_has_its_interval() -> None:
    starts = {bench_startup.IMPORTS: [2.0] * 7, "plain python": [1.8, 1.9, 2.0, 2.1, 2.2, 2.3, 2.4]}
    seconds = {name: [{"cpu": each, "wall": each} for each in costs] for name, costs in starts.items()}
    said = bench_startup.lines(seconds)[1]
    assert "1.05 [0.90, 1.20] times the imports" in said  # of seven, from the least to the most


def test_a_tree_is_listed_by_a_scan_and_then_by_what_was_kept(tmp_path) -> None:
    bench_startup.make_tree(tmp_path / "tree", 2_000)
    names = sorted(str(file.relative_to(tmp_path / "tree")) for file in (tmp_path / "tree").rglob("*.JPEG"))
    assert (len(names), names[0], names[-1]) == (2_000, "n00000000/n00000000_0.JPEG", "n00000999/n00000999_999.JPEG")
    cache = bench_startup.ScanCache(tmp_path / "cache", least_files=2_000, settled_ns=-(10**12))
    assert all(bench_startup.time_listing(tmp_path / "tree", cache).wall > 0 for _ in range(2))
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 1
    seconds = {name: [{"cpu": 1.0, "wall": 2.0}] * 3 for name in (bench_startup.SCAN, bench_startup.SECOND)}
    assert "second start: 2.00 s by the clock, 1.00 CPU seconds" in bench_startup.tree_lines(seconds)
