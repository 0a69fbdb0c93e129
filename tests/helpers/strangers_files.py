"""Files that a stranger might hand over: pickles that run a command, in a checkpoint whose manifest agrees."""

import json
import os
import pickle
from hashlib import sha256
from pathlib import Path

from rlpheads.engine.runs.checkpoint import SEAL, write_sealed_manifest


class Command:
    """Unpickled as a call of os.system."""

    def __init__(self, touched: Path):
        self.touched = touched

    def __reduce__(self):
        return os.system, (f"touch {self.touched}",)


def make_manifest_agree(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (saved / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    write_sealed_manifest(saved, {key: value for key, value in manifest.items() if key != SEAL})


def replace_metadata(saved: Path, content: object) -> None:
    (saved / ".metadata").write_bytes(pickle.dumps(content))
    make_manifest_agree(saved)
