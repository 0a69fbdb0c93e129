"""Ranks that stand for nodes: each has its own path to the images, and a line in a file tells every folder that it scans."""

import os
from pathlib import Path

from rlpheads.loaders.sources import image_folder


def as_node(rank: int, *, roots: tuple[Path, ...], scans: Path) -> None:
    """Make this rank the first one of a node whose variable NODE_IMAGES names its root."""
    os.environ |= {"NODE_IMAGES": str(roots[rank]), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    scan = image_folder.scan_image_folder

    def counted(root: Path, split: str):
        with scans.open("a") as lines:
            lines.write(f"{rank} {root}\n")
        return scan(root, split)

    image_folder.scan_image_folder = counted
