"""What is written in pieces of any size is in the file, whole blocks past the page cache or not, with its size and hash."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpheads.engine.runs import hashed_files
from rlpheads.engine.runs.checkpoint_writing import HashingFileSystem
from rlpheads.engine.runs.hashed_files import file_problem

BLOCK = hashed_files._BLOCK_BYTES
SIZES = st.lists(st.sampled_from([0, 1, 511, 4096, 70_001, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 77]), max_size=6)


def write(path: Path, pieces: list[bytes]) -> dict:
    files = HashingFileSystem()
    with files.create_stream(path, "wb") as stream:
        for piece in pieces:
            assert stream.write(piece) == memoryview(piece).nbytes
        assert stream.tell() == sum(memoryview(piece).nbytes for piece in pieces)
    return files.facts[path.name]


@settings(max_examples=12, deadline=None)
@given(SIZES, st.sampled_from(["disk", "memory"]))
def test_pieces_of_any_size(tmp_path_factory, sizes, where):
    """/dev/shm has pages and nothing behind them: what it does with O_DIRECT is the system's affair."""
    folder = Path("/dev/shm") if where == "memory" and os.access("/dev/shm", os.W_OK) else tmp_path_factory.mktemp("w")
    path = folder / f"pieces.{os.getpid()}"
    random = np.random.default_rng(0)
    pieces = [random.bytes(size) for size in sizes]
    try:
        facts = write(path, pieces)
        assert path.read_bytes() == b"".join(pieces)
        assert file_problem(path, facts) is None
        assert file_problem(path, facts | {"bytes": facts["bytes"] + 1}) is not None
    finally:
        path.unlink()


def test_a_file_system_that_refuses_unaligned_blocks_is_written_through_the_page_cache(tmp_path, monkeypatch):
    """As one with larger blocks than a page would: the first write is refused, and then no more."""
    write_once, refused = os.write, []

    def write_aligned(descriptor: int, data: memoryview) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(len(data))
            raise OSError(22, "Invalid argument")
        return write_once(descriptor, data)

    monkeypatch.setattr(os, "write", write_aligned)
    content = np.random.default_rng(1).bytes(BLOCK * 2 + 5)
    facts = write(tmp_path / "file", [content])
    assert (tmp_path / "file").read_bytes() == content
    assert file_problem(tmp_path / "file", facts) is None
    assert len(refused) <= 1


def test_views_of_tensors_are_written_as_their_bytes(tmp_path):
    tensor = torch.arange(1000, dtype=torch.int32)
    write(tmp_path / "file", [memoryview(tensor.numpy())])
    assert (tmp_path / "file").read_bytes() == tensor.numpy().tobytes()


LIMITED = """
import resource, sys
from pathlib import Path
from rlpheads.engine.runs.checkpoint_writing import HashingFileSystem
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with HashingFileSystem().create_stream(Path(sys.argv[1]), "wb") as stream:
        stream.write(bytes(1 << 23))
except OSError as error:
    print(error.errno, error.filename)
"""


def test_what_the_system_complains_of_names_the_file(tmp_path):
    path = tmp_path / "file"
    ended = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["27", str(path)]
