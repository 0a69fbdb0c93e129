"""What shows in a configuration's model and optimizers: they are built without memory, on torch's meta device.

torch and timm load inside the functions: what `rlpheads.engine.checks.settings` finds before them is told at once.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from rlpheads.engine.config.errors import ConfigError, nearest, refusal, shown
from rlpheads.engine.config.learning import ModelConfig, OptimConfig
from rlpheads.engine.config.schema import Config

if TYPE_CHECKING:
    from torch import nn

    from rlpheads.engine.model.tapped_model import TappedModel

_TIMM_LOADS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def check_parts(config: Config, world_size: int) -> None:
    """Build model and optimizers to see whether they can be; the process's random numbers stay as they were.

    Raises:
        ConfigError: the first problem found.
    """
    import torch

    _check_model_name(config.model)
    with torch.random.fork_rng(devices=[]):
        _check_model(config, world_size)
        for key, optim in (("optim", config.optim), ("heads.optim", config.heads.optim)):
            _check_apex(key, optim.name)
            _check_optimizer(key, optim, config)


def _check_model_name(model: ModelConfig) -> None:
    import timm

    if "num_classes" in model.args:
        raise ConfigError("model.args: got num_classes, which the dataset decides; allowed: any other argument")
    if loads := [name for name in model.args if name in _TIMM_LOADS]:
        raise ConfigError(
            f"model.args: got {loads[0]}; weights to start from are given by model.pretrained or model.checkpoint"
        )
    architecture = model.name.partition(".")[0]  # vit_base_patch16_224.augreg_in1k names weights too
    if not timm.is_model(architecture):
        match = nearest(architecture, timm.list_models())
        hint = f" (nearest: {match})" if match else ""
        raise refusal(
            "model.name", model.name, f"a model of timm {timm.__version__}{hint}; timm.list_models() names them"
        )


def _check_model(config: Config, world_size: int) -> None:
    import torch

    from rlpheads.engine.model.builder import build_model, tap_dims

    try:
        with torch.device("meta"):
            model = build_model(config, num_classes=2)
            tap_dims(model, config.data.image_size)
        chosen = config.regularizer.taps
        regularized = model.places if chosen == "all" else model.select(chosen)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    except Exception as error:  # timm computes with its arguments unchecked, and any exception may come of that
        given = f"got {shown(config.model.name)} with model.args {shown(config.model.args)}"
        raise ConfigError(f"model: {given}, which cannot be built: {type(error).__name__}: {error}") from error
    _check_batch_norm(config, model, world_size)
    if config.runtime.activation_checkpointing:
        _check_activation_checkpointing(config.model.name, model)
    _check_start(config, model)
    if not set(regularized) <= set(model.places):
        raise refusal("regularizer.taps", chosen, f"taps that have a head: {list(model.taps)}")


def _check_batch_norm(config: Config, model: nn.Module, world_size: int) -> None:
    from rlpheads.engine.model.batch_norm import has_batch_norm

    if not has_batch_norm(model) or config.model.frozen:
        return
    if world_size > 1 and not config.model.sync_batchnorm:
        raise ConfigError(
            f"model.name: got {shown(config.model.name)}, whose batch norm keeps statistics of one rank's images; "
            "allowed on several ranks: --model.sync_batchnorm, or a model without batch norm"
        )
    if config.data.partial == "pad":
        raise refusal("data.partial", "pad", "drop for a network with batch norm, whose statistics padding would enter")


def _check_activation_checkpointing(name: str, model: TappedModel) -> None:
    try:
        model.backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise ConfigError(
            f"runtime.activation_checkpointing: got true, but timm's {name} does not offer it; allowed: false"
        ) from error


def _check_start(config: Config, model: TappedModel) -> None:
    """Make sure that the weights to start from are there and fit."""
    from rlpheads.engine.model.initial_weights import WeightsError, fit_weights

    settings = config.model
    if settings.checkpoint is not None:
        try:
            fit_weights(model.backbone, settings.checkpoint)
        except WeightsError as error:
            raise ConfigError(f"model.checkpoint: {error}") from error
    if settings.pretrained:
        _check_pretrained(settings)


def _check_pretrained(model: ModelConfig) -> None:
    import timm

    known = timm.get_pretrained_cfg(model.name, allow_unregistered=True)
    if known is None or not known.has_weights:
        tagged = timm.list_models(f"{model.name.partition('.')[0]}*", pretrained=True)
        match = nearest(model.name, tagged)
        raise ConfigError(
            f"model.pretrained: timm publishes no weights for {model.name}"
            + (f"; nearest: --model.name {match}" if match else "; a local file is given by model.checkpoint")
        )
    try:
        timm.create_model(model.name, pretrained=True, **model.args)
    except Exception as error:  # the hub's client has many, and timm computes with what it fetched
        raise ConfigError(
            f"model.pretrained: the weights of {model.name} cannot be had: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}. Without access to the Hugging Face hub, "
            "fetch them elsewhere and give the file: --model.checkpoint FILE"
        ) from error


def _check_apex(key: str, name: str) -> None:
    """Make sure that what timm's `fused...` optimizers need is here: NVIDIA's apex, and a GPU."""
    if not name.startswith("fused"):
        return
    import torch

    close = name.removeprefix("fused")
    instead = f"torch's own fused step comes with {close}" if close in ("adam", "adamw", "sgd") else "another optimizer"
    remedy = f"allowed here: {key}.name without fused ({instead})"
    if importlib.util.find_spec("apex") is None:
        raise ConfigError(
            f"{key}.name: got {shown(name)}, which needs NVIDIA's apex, built from its source; it is not installed; {remedy}"
        )
    if importlib.util.find_spec("apex.optimizers") is None:
        raise ConfigError(
            f"{key}.name: got {shown(name)}, which needs NVIDIA's apex, but the apex that is installed is the unrelated "
            f"package of that name in the registry: remove it (pip uninstall apex), and build NVIDIA's; {remedy}"
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{key}.name: got {shown(name)}, whose kernels need a CUDA device, and there is none; {remedy}"
        )


def _check_optimizer(key: str, optim: OptimConfig, config: Config) -> None:
    import timm.optim
    from torch import nn

    from rlpheads.engine.learner.parts import build_part
    from rlpheads.engine.learner.schedule import Span

    known = timm.optim.list_optimizers()
    if optim.name not in known:
        match = nearest(optim.name, known)
        hint = f" (nearest: {match})" if match else ""
        raise refusal(f"{key}.name", optim.name, f"an optimizer of timm{hint}; timm.optim.list_optimizers() names them")
    if timm.optim.get_optimizer_info(optim.name).second_order:
        raise refusal(f"{key}.name", optim.name, "an optimizer that needs first-order gradients only, such as adamw")
    try:
        build_part(nn.Linear(2, 2), optim, config.schedule, Span(config.epochs, 1), ddp=False)
    except (ValueError, TypeError, AssertionError, RuntimeError, ImportError) as error:
        raise ConfigError(f"{key}.name: {optim.name} cannot be built here: {error}") from error
