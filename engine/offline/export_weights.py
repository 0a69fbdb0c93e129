"""What `rlpheads export` writes: weights under timm's names, its description of the network, and heads with their labels."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor

from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner.learner import num_audit_draws
from rlpheads.engine.offline.saved_network import classifier_outputs, load_saved_network
from rlpheads.engine.runs.checkpoint_metadata import read_tensors
from rlpheads.engine.runs.opened_run import RunError, SavedRun, open_images, read_run
from rlpheads.engine.runs.sources import Sources
from rlpheads.engine.runs.weights_files import write_weights
from rlpheads.engine.training.label_choice import run_labels

_WEIGHTS, _CONFIG, _HEADS = "model.safetensors", "config.json", "heads.safetensors"


@dataclass(frozen=True)
class ExportOptions:
    """Which weights are exported, and what beside them.

    Attributes:
        epoch: the checkpoint of the end of this epoch; None: by `step`.
        step: the checkpoint of this step; None: the newest.
        ema: the averaged weights in place of the live ones.
        heads: heads and random labels too, for which the images are listed.
        root: where the images are now, if they were moved.
        plugins: import the plug-ins that the run names.
        overwrite: replace files that are there.
    """

    epoch: int | None = None
    step: int | None = None
    ema: bool = False
    heads: bool = False
    root: Path | None = None
    plugins: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written, and whether timm alone can build the network."""

    files: tuple[Path, ...]
    architecture: str
    num_classes: int
    has_class_names: bool

    def describe(self) -> list[str]:
        """Return the lines that are printed."""
        lines = [f"wrote {', '.join(map(str, self.files))}"]
        if not self.has_class_names:
            lines.append("class names are left out: the images cannot be opened; --root FOLDER says where they are")
        if self.architecture.startswith("wrn_"):
            lines.append(f"timm knows {self.architecture} after: import rlpheads.engine.model.wide_resnet")
        weights = self.files[0]
        if weights.name == _WEIGHTS:
            return [*lines, f"load it: timm.create_model({f'local-dir:{weights.parent}'!r}, pretrained=True)"]
        return [
            *lines,
            f"load it: timm.create_model(…, num_classes={self.num_classes}, checkpoint_path={str(weights)!r})",
        ]


def export_run(folder: Path, out: Path, options: ExportOptions) -> Exported:
    """Write the weights of a run's checkpoint to `out`; every file is whole or not there.

    Args:
        folder: the run folder.
        out: a file `NAME.safetensors`, or a folder.
        options: which weights, and what beside them.

    Raises:
        RunError: there is no such run, checkpoint or average, or a file of the same name is there.
        ConfigError: the images are needed and cannot be opened.
        CheckpointError: the checkpoint is damaged.
    """
    weights = out if out.suffix == ".safetensors" else out / _WEIGHTS
    files = (weights, weights.with_name(_CONFIG), *([weights.with_name(_HEADS)] if options.heads else []))
    _check_free(out, files, options.overwrite)
    run = read_run(folder, options.epoch, options.step, options.root, plugins=options.plugins)
    if options.ema and run.config.model.ema_decay is None:
        raise RunError(f"{folder} has no moving average of its weights (model.ema_decay is null); leave --ema out")
    images = _images(run, options)
    model = load_saved_network(run, "ema" if options.ema else "backbone")
    model.release()
    backbone: Any = model.backbone
    num_classes = classifier_outputs(backbone, run.config.model.name)
    weights.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=weights.parent) as temporary:
        names = None if images is None else list(images.train.manifest.classes)
        written = _save_network(backbone, Path(temporary), num_classes, _describe(run.config, names), run.config)
        if options.heads:
            assert images is not None
            written.append(_save_heads(run, images, Path(temporary) / _HEADS))
        for made, final in zip(written, files, strict=True):
            made.replace(final)
    return Exported(files, run.config.model.name, num_classes, images is not None)


def _save_network(
    backbone: Any, folder: Path, num_classes: int, described: dict[str, Any], config: Config
) -> list[Path]:
    """Write weights and config.json as timm does; of a model without timm's own description, what is known here."""
    if getattr(backbone, "pretrained_cfg", None):
        save_for_hf(backbone, folder, model_config=described, safe_serialization=True)
    else:
        write_weights(folder / _WEIGHTS, backbone, {"model": config.model.name})
        known = {"architecture": config.model.name, "num_classes": num_classes}
        (folder / _CONFIG).write_text(json.dumps(known | described, indent=2), encoding="utf-8")
    return [folder / _WEIGHTS, folder / _CONFIG]


def _check_free(out: Path, files: tuple[Path, ...], overwrite: bool) -> None:
    """Refuse names that are taken, before anything is read."""
    if out.suffix and out.suffix != ".safetensors" and not out.is_dir():
        raise RunError(
            f"{out}: OUT is a folder or a file that ends in .safetensors; nearest: {out.with_suffix('.safetensors')}"
        )
    taken = [str(file) for file in files if file.exists()]
    if taken and not overwrite:
        raise RunError(f"{', '.join(taken)}: there already; replace with --overwrite, or name another OUT")


def _images(run: SavedRun, options: ExportOptions) -> Sources | None:
    """Return the run's images; None where they are not there and are not needed."""
    try:
        return open_images(run)
    except (ConfigError, RunError):
        if options.heads or options.root is not None:
            raise
        return None


def _describe(config: Config, class_names: list[str] | None) -> dict[str, Any]:
    """Return what timm's config.json says beyond the architecture: how images are prepared, and the classes' names."""
    side = config.data.image_size
    prepared: dict[str, Any] = {
        "input_size": (3, side, side),
        "mean": config.data.mean,
        "std": config.data.std,
        "crop_pct": config.data.eval_crop_fraction,
        "crop_mode": "center",
        "interpolation": config.data.interpolation,
    }
    if config.evaluation_size != side:
        prepared["test_input_size"] = (3, config.evaluation_size, config.evaluation_size)
    described: dict[str, Any] = {"pretrained_cfg": prepared, "model_args": dict(config.model.args)}
    return described | ({} if class_names is None else {"label_names": class_names})


def _save_heads(run: SavedRun, images: Sources, path: Path) -> Path:
    """Write heads and audit heads under the checkpoint's names, and the labels that they predict, int32 (M, N)."""
    tensors: dict[str, Tensor] = {}
    for part in ("heads", "audit"):
        tensors |= {f"{part}.{name}": tensor for name, tensor in read_tensors(run.saved.path, f"{part}.").items()}
    if not tensors:
        raise RunError(f"{run.folder.path} has no heads (heads.taps is empty); leave --heads out")
    num_draws = run.config.heads.draws + num_audit_draws(run.config)
    for split in (images.train, images.heldout):
        tensors[f"labels.{split.manifest.split}"] = run_labels(run.config, split.manifest, num_draws)
    facts = {"own_draws": run.config.heads.draws, "num_labels": run.config.heads.num_labels}
    save_file(tensors, path, metadata={name: str(value) for name, value in facts.items()})
    return path
