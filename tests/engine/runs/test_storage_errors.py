"""Files of a run that cannot be read, written or reached, or that are something else: what is told, and by whom.

Real files in real processes. Rights do not bind the root user that containers run as, so its processes give up the
right to pass over them.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from many_starts import End, Start, start_each

from rlpheads.engine.runs.storage_errors import describe_storage_failure, storage_failure

pytestmark = pytest.mark.long

OBEDIENT = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
"""Starts a command that is bound by the rights of files."""

SETTINGS = """
epochs: 2
batch_size: 118
device: cpu
data: {dataset: digits, val_fraction: 0.2, workers: 0, image_size: 8, hflip: 0, crop_scale: [0.8, 1]}
model:
  name: vit_tiny_patch16_224
  args: {img_size: 8, patch_size: 4, embed_dim: 24, depth: 1, num_heads: 2}
heads: {labels: 10}
"""
"""Twelve steps an epoch."""

GOES_ON = "; the same command then goes on from the last checkpoint, which is whole"
LAST = "checkpoints/step=000000014"


def can_obey() -> bool:
    try:
        return subprocess.run([*OBEDIENT, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def rights(mode: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(mode)


def swapped(path: Path) -> None:
    """Put a folder in the place of a file, and a file in the place of a folder."""
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("a file")
    else:
        path.unlink()
        path.mkdir()


class Case(NamedTuple):
    """What is done to which file of a run folder, and what the run that goes on says, as `cannot …`."""

    file: str
    damage: Callable[[Path], None]
    code: int
    expected: str


DENIED = "Permission denied; make"
ELSEWHERE = ", or use another --run.dir"
REPLACED = "something has removed or replaced what the run had there: put it back, or use another --run.name"
CASES = [
    Case(f"{LAST}/manifest.json", rights(0o200), 2, f"read {{path}}: {DENIED} it readable{ELSEWHERE}"),
    Case(f"{LAST}/__0_0.distcp", rights(0o200), 2, f"read {{path}}: {DENIED} it readable{ELSEWHERE}"),
    Case(f"{LAST}/.metadata", rights(0o000), 2, f"open {{path}}: {DENIED} it readable and writable{ELSEWHERE}"),
    Case(
        LAST,
        rights(0o600),
        2,
        f"reach {{path}}/manifest.json: {DENIED} the folder {{path}} accessible (chmod u+rwx){ELSEWHERE}",
    ),
    Case("checkpoints", rights(0o300), 2, f"read {{path}}: {DENIED} it readable{ELSEWHERE}"),
    Case(
        "checkpoints",
        rights(0o500),
        1,
        f"write {{path}}/.step=000000024.tmp: {DENIED} the folder {{path}} writable{ELSEWHERE}{GOES_ON}",
    ),
    Case("metrics.jsonl", rights(0o200), 2, f"read {{path}}: {DENIED} it readable{ELSEWHERE}"),
    Case("tensorboard", rights(0o500), 1, f"the folder {{path}} writable{ELSEWHERE}{GOES_ON}"),
    Case("ledger", rights(0o500), 1, f"{DENIED} the folder {{path}} writable{ELSEWHERE}{GOES_ON}"),
    Case("", rights(0o500), 2, f"{DENIED} the folder {{path}} writable{ELSEWHERE}"),
    Case("metrics.jsonl", swapped, 2, f"use {{path}}: Is a directory; {REPLACED}"),
    Case("status.json", swapped, 2, f"use {{path}}: Is a directory; {REPLACED}"),
    Case("tensorboard", swapped, 1, f"use {{path}}: File exists; {REPLACED}{GOES_ON}"),
    Case("ledger", swapped, 1, f"Not a directory; {REPLACED}{GOES_ON}"),
]


def name_of(case: Case) -> str:
    return f"{CASES.index(case):02d}"


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> Iterator[dict[str, End]]:
    """How runs ended that went on from a damaged folder, by the number of the case."""
    if not can_obey():
        pytest.skip("no way here to be bound by the rights of files (setpriv)")
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(SETTINGS)
    common = ["--config", "tiny.yaml", "--run.dir", "."]
    (begun,) = start_each(
        folder, {"begun": Start([*common, "--run.name", "mine", "--max_steps", "14"])}, os.environ
    ).values()
    assert begun.code == 0, begun.output
    for case in CASES:
        shutil.copytree(folder / "mine", folder / f"run{name_of(case)}")
        case.damage(folder / f"run{name_of(case)}" / case.file)
    starts = {name: Start([*common, "--run.name", f"run{name}"]) for name in map(name_of, CASES)}
    yield start_each(folder, starts, os.environ, OBEDIENT)
    for case in CASES:
        if (damaged := folder / f"run{name_of(case)}" / case.file).exists():
            damaged.chmod(0o700)


@pytest.mark.wrong("environment")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file or 'run folder'} {CASES.index(case)}")
def test_file_that_cannot_be_used(ends, case):
    end = ends[name_of(case)]
    path = Path(f"run{name_of(case)}") / case.file
    assert end.complaint.startswith("error: cannot ")
    assert end.complaint.endswith(case.expected.format(path=path)), end.complaint
    assert end.code == case.code, end.output
    assert "Traceback" not in end.output


def test_what_is_no_complaint_about_a_file_of_the_run_is_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "elsewhere").read_text()
    assert storage_failure(caught.value, tmp_path / "run") is None
    assert storage_failure(caught.value, tmp_path) is caught.value
    for other in (
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError("words alone"),
        KeyError(1),
    ):
        assert storage_failure(other, tmp_path) is None


@pytest.mark.wrong("environment")
@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (
            errno.EIO,
            "cannot use mine/ledger: Input/output error; its disk or network file system fails: have it looked at, ",
        ),
        (
            errno.ESTALE,
            "cannot use mine/ledger: Stale file handle; its disk or network file system fails: have it looked",
        ),
        (
            errno.EDQUOT,
            "cannot write mine/ledger: Disk quota exceeded; make room within your quota (--checkpoint.keep 1 ",
        ),
        (
            errno.EMFILE,
            "cannot open mine/ledger: Too many open files; lift the limit on open files (ulimit -n), or take ",
        ),
    ],
    ids=errno.errorcode.get,
)
def test_complaints_that_cannot_be_brought_about_here(number, expected):
    complaint = OSError(number, os.strerror(number), "mine/ledger")
    assert storage_failure(RuntimeError("outer"), Path("mine")) is None
    try:
        raise RuntimeError("outer") from complaint
    except RuntimeError as error:
        assert storage_failure(error, Path("other")) is complaint
    assert describe_storage_failure(complaint, Path("mine")).startswith(expected)
