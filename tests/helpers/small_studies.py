"""A study of tiny runs, as its files say it."""

from pathlib import Path

BASE = """
epochs: 1
max_steps: 4
batch_size: 32
device: cpu
data: {workers: 0, image_size: 8, hflip: 0, eval_crop_fraction: 1}
model: {name: vit_tiny_patch16_224, args: {img_size: 8, patch_size: 4, embed_dim: 24, depth: 2, num_heads: 2}}
heads: {labels: 5}
"""
STUDY = """
config: base.yaml
seeds: [3]
settings:
  {epochs: 1, max_steps: null, data: {label_noise: 0.1}, ledger: {every: 1}, heads: {labels: auto, draws: 2, audit_draws: 1}}
arms:
  free: {regularizer: {factor: 0}}
  held: {regularizer: {kind: uniform, factor: 1}}
audit: {draws: 4}
"""


def study_file(folder: Path, text: str) -> Path:
    """Write a study and the configuration that it begins with; return the study's path."""
    (folder / "base.yaml").write_text(BASE)
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"
