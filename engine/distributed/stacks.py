"""What processes are at when nothing moves: stacks, the kernel's word on a process, torch's flight recorder."""

from __future__ import annotations

import faulthandler
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch
from torch._C import _distributed_c10d as c10d

_PACKAGE = Path(__file__).parents[2]
_STATES = {
    "R": "running",
    "S": "waiting",
    "D": "waiting for a disk or the network",
    "T": "stopped by a signal (SIGCONT lets it go on)",
    "t": "stopped by a debugger",
    "Z": "ended",
}
"""Letters of /proc/PID/stat: proc(5)."""


def write_stacks(path: Path) -> None:
    """Write the stacks of all threads of this process to a file."""
    with path.open("w") as file:
        faulthandler.dump_traceback(file, all_threads=True)


def main_thread_place() -> tuple[str, bool]:
    """Return where the main thread is in this package, `file:line in function`, and whether it waits inside torch there."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    in_torch = frame is not None and Path(torch.__file__).parent in Path(frame.f_code.co_filename).parents
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if _PACKAGE in path.parents:
            return f"{path.relative_to(_PACKAGE)}:{frame.f_lineno} in {frame.f_code.co_name}", in_torch
        frame = frame.f_back
    return "nowhere in rlpheads", in_torch


def process_state(pid: int) -> str:
    """Return what the kernel says of a process of this machine, in words."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "gone"
    return _STATES.get(letter, letter)


def write_flight_record(path: Path) -> None:
    """Write the collectives that this process began last, as torch recorded them (JSON), where it records any.

    NCCL's are recorded where TORCH_FR_BUFFER_SIZE was set before the process group was made.
    """
    name = "_dump_nccl_trace_json" if torch.cuda.is_available() else "_dump_fr_trace_json"
    with suppress(AttributeError, RuntimeError, OSError):
        record = getattr(c10d, name)()
        path.write_bytes(record if isinstance(record, bytes) else record.encode())
