"""`python -m rlpheads.kernels.tools.ptx`: the table of what is executed, as the command prints it."""

import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with torch's CUDA build only")

from rlpheads.kernels.tools.ptx.__main__ import PLAIN, SPECIAL, kinds_of_tiles

ROWS, FEATURES, LABELS = 64, 64, 4000


@pytest.mark.long
def test_the_table_of_a_process_of_its_own() -> None:
    """Every kernel of a loss has a row, `class_tiles` one for each kind of its tiles, too; below stands the model.

    In another process, since Triton decides at an import whether a kernel is interpreted, and the tests have imported all.
    """
    sizes = map(str, (ROWS, FEATURES, LABELS))
    command = [sys.executable, "-m", "rlpheads.kernels.tools.ptx", "--chips", "90", "--sizes", *sizes]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for kernel in ("row_shifts", "merge_tiles", "row_terms", "add_label_rows"):
        assert re.search(rf"{kernel} +│ sm_90", printed), printed
    found = {
        name: (int(blocks), float(a_logit))
        for name, blocks, a_logit in re.findall(r"│ +([^│]+?) +│ sm_90 │ +(\d+) │ +([\d.]+) │", printed)
    }
    (tiles, a_logit), (plain, of_plain), (special, of_special) = (
        found[name] for name in ("class_tiles", PLAIN, SPECIAL)
    )
    assert tiles == plain + special == -(-LABELS // 128)
    assert 0 < of_plain < of_special
    share = plain * 128 / LABELS
    assert abs(a_logit - (share * of_plain + (1 - share) * of_special)) < 0.02
    executed_share, modelled_share = (float(number) for number in re.findall(r"(\d\.\d{3}) (?:of the|by the)", printed))
    assert 1 <= executed_share < 2
    assert 1 <= modelled_share < 2


def test_tiles_are_told_apart_by_labels_and_edges() -> None:
    """Two heads of three rows and a range of ten classes from the fifth on, by tiles of 2 × 4: the third column is ragged, as
    the second row is; the first head has both labels in the first column, the second head one beyond the range, one in each."""
    labels_LR = torch.tensor([[5, 5, 5, 30, 5, 5], [8, 8, 8, 0, 9, 5]])
    named = {
        "num_rows": 3,
        "num_kept_rows": 3,
        "num_classes": 10,
        "start": 5,
        "ROWS": 2,
        "CLASSES": 4,
        "labels": labels_LR,
    }
    kinds = {kind.name: kind for kind in kinds_of_tiles(named, (6, 2, 1))}
    assert kinds[PLAIN].blocks == [(2, 0, 0)]
    assert len(kinds[SPECIAL].blocks) == 11
    assert (kinds[PLAIN].num_outputs, kinds[SPECIAL].num_outputs) == (8, 2 * 30 - 8)
