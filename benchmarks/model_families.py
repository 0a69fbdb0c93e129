"""Every architecture family of timm: whether its taps are found, and a step with heads goes through.

python benchmarks/model_families.py                            # the smallest model of each family, minutes on two cores
python benchmarks/model_families.py --quick                    # five of them
python benchmarks/model_families.py swin_transformer resnet    # these, whatever their size

A family is a module of timm.models. For each, the model with the fewest parameters is built for ten classes, at its own
image size (at most 256, where the model can be built for less). Heads of ten random labels read every block or stage, and
one optimizer step is taken on two random images with all three losses: class, heads, regulariser. A family works when
every parameter of backbone and heads that got a gradient got a finite one. A family whose smallest model has more than 60
million parameters is left out, and said to be, unless it is asked for by name. Exits with 1 if any family fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timm.models._registry import _model_to_module
from torch import nn

from rlpheads.engine.config.learning import ModelConfig, OptimConfig, ScheduleConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner.learner import build_heads, num_parameters
from rlpheads.engine.learner.parts import build_part
from rlpheads.engine.learner.schedule import Span
from rlpheads.engine.model.builder import build_model, tap_dims
from rlpheads.engine.model.tapped_model import TappedModel
from rlpheads.memorization.heads.combined_loss import TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import HeadTerms

NAMES = Path(__file__).with_suffix(".txt")
NUM_CLASSES, NUM_IMAGES, LARGEST, MOST_PARAMETERS = 10, 2, 256, 60e6
QUICK = ("vision_transformer", "swin_transformer", "convnext", "resnet", "mlp_mixer")


@dataclass
class Result:
    """What one family did; `reason` is empty where it works, and `tried` false where it is too large."""

    family: str
    model: str = "-"
    parameters: int = 0
    image_size: int = 0
    taps: int = 0
    widths: str = ""
    pool: str = ""
    seconds: float = 0.0
    reason: str = ""
    tried: bool = True


def smallest_models() -> dict[str, tuple[int, str]]:
    """Return each family's model with the fewest parameters: their number, and its name.

    The names are kept in model_families.txt, since building every model of timm takes minutes; a family that is not
    there (of another version of timm) is looked through.
    """
    kept = dict(line.split() for line in NAMES.read_text().splitlines())
    names: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models():
        names[_model_to_module[name]].append(name)
    choices = {family: [kept[family]] if kept.get(family) in models else models for family, models in names.items()}
    return {family: min((_size(name), name) for name in models) for family, models in sorted(choices.items())}


def _size(name: str) -> int:
    try:
        with torch.device("meta"):
            return num_parameters(timm.create_model(name))
    except Exception:  # what cannot be built on the meta device is tried last
        return sys.maxsize


def try_family(family: str, name: str) -> Result:
    """Take one step with the model `name`, and say how it went."""
    result, begun = Result(family, name), time.perf_counter()
    try:
        config, dims = _fitted(name)
        with torch.random.fork_rng(devices=[]):
            model = build_model(config, NUM_CLASSES)
        result.parameters, result.image_size = num_parameters(model), config.data.image_size
        result.taps, result.pool = len(dims), model.pool
        result.widths = f"{dims[0]} … {dims[-1]}" if len(dims) > 1 else str(dims[0])
        result.reason = _step(config, model, dims)
    except Exception as error:  # the table names whatever goes wrong
        result.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    result.seconds = time.perf_counter() - begun
    return result


def _fitted(name: str) -> tuple[Config, tuple[int, ...]]:
    """Return settings under which the model can be built: at its own image size, or a smaller one if that is large."""
    own = timm.get_pretrained_cfg_value(name, "input_size")[-1] if timm.get_pretrained_cfg(name) else 32
    attempts: list[tuple[dict[str, Any], int]] = [({}, own)]
    if own > LARGEST:
        attempts = [({"img_size": LARGEST}, LARGEST), ({}, LARGEST), ({}, own)]
    for position, (args, size) in enumerate(attempts):
        config = Config(model=ModelConfig(name=name, args=args), schedule=ScheduleConfig(name="constant"))
        config = replace(config, data=replace(config.data, image_size=size))
        try:
            with torch.device("meta"):
                return config, tap_dims(build_model(config, NUM_CLASSES), size)
        except Exception:
            if position + 1 == len(attempts):
                raise
    raise AssertionError("unreachable")


def _step(config: Config, model: TappedModel, dims: tuple[int, ...]) -> str:
    """Take one step; return what is wrong with it."""
    heads = build_heads(config, dims, "heads", 1)
    span = Span(1, 1)
    parts = [build_part(module, OptimConfig(), config.schedule, span, ddp=False) for module in (model, heads)]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(NUM_IMAGES, 3, config.data.image_size, config.data.image_size, generator=generator)
    labels_MB = torch.randint(config.heads.num_labels, (1, NUM_IMAGES), generator=generator)
    model.train()
    logits, taps = model(images)
    if logits.shape != (NUM_IMAGES, NUM_CLASSES):
        return f"logits of shape {tuple(logits.shape)}"
    terms = HeadTerms("unlikelihood", tuple(range(len(dims))))
    losses = combine_losses(heads(taps, labels_MB, terms), torch.ones(NUM_IMAGES) > 0, NUM_IMAGES, 1, TermWeights(1.0))
    (F.cross_entropy(logits, torch.tensor([0, 1])) + losses.total).backward()
    if wrong := list(_bad_gradients({"backbone": model, "heads": heads})):
        return "; ".join(wrong)
    for part in parts:
        part.update(0, part.gradient_norm())
    return ""


def _bad_gradients(modules: dict[str, nn.Module]) -> Iterable[str]:
    for name, module in modules.items():
        gradients = {key: parameter.grad for key, parameter in module.named_parameters()}
        if bad := [key for key, grad in gradients.items() if grad is not None and not grad.isfinite().all()]:
            yield f"{name}: gradient not finite in {bad[0]}"
        first = next(iter(gradients), "")
        if all(grad is None for grad in gradients.values()):
            yield f"{name}: no gradient at {first} or anywhere"


def table(results: list[Result]) -> Table:
    tried = [result for result in results if result.tried]
    working = sum(not result.reason for result in tried)
    title = f"{working} of {len(tried)} families tried work, {len(results) - len(tried)} are too large to be tried"
    title += f" (timm {timm.__version__}, torch {torch.__version__})"
    shown = Table(title=title, title_justify="left", padding=(0, 1))
    for column in ("family", "model", "parameters", "image", "taps", "widths", "pool", "seconds", "result"):
        shown.add_column(column, overflow="fold")
    for result in results:
        shown.add_row(
            result.family,
            result.model,
            f"{result.parameters / 1e6:.1f} M",
            str(result.image_size),
            str(result.taps),
            result.widths,
            result.pool,
            f"{result.seconds:.1f}",
            result.reason or ("works" if result.tried else "not tried: size"),
        )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="modules of timm.models; default: all of them")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    models = smallest_models()
    chosen = arguments.families or (QUICK if arguments.quick else models)
    if unknown := sorted(set(chosen) - set(models)):
        parser.error(f"no such family: {', '.join(unknown)}; there are {', '.join(models)}")
    console, results = Console(width=None if sys.stdout.isatty() else 200), []
    for family in chosen:
        size, name = models[family]
        if size > MOST_PARAMETERS and not arguments.families:
            results.append(Result(family, name, size, tried=False))
            continue
        results.append(try_family(family, name))
        if not sys.stdout.isatty():
            print(
                f"{family}: {results[-1].reason or 'works'} ({results[-1].seconds:.1f} s)", file=sys.stderr, flush=True
            )
    console.print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    return int(any(result.reason for result in results))


if __name__ == "__main__":
    sys.exit(main())
